package apiserver

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

type snapshotService struct{ *Server }

// Save implements SnapshotService.
func (s snapshotService) Save(ctx context.Context, req *connect.Request[varvev1.SaveSnapshotRequest], stream *connect.ServerStream[varvev1.ExportChunk]) error {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return err
	}
	out := &chunks{send: func(b []byte) error { return stream.Send(&varvev1.ExportChunk{Data: b}) }}
	if err := writeState(out, c.view, s.Info().Version, s.Node); err != nil {
		return pastError(ctx, fmt.Errorf("snapshot of revision %d: %w", c.view.Revision(), err))
	}
	return out.flush()
}
