package past

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Source is a state that was read from a file, as a whole and checked.
type Source struct {
	Header *eventpb.ArchiveHeader
	State  *fsm.State
	Bytes  int64
}

// ReadSource reads the state that a saved snapshot, or any export that is not
// filtered, leads to. It checks every byte of the file first: what is damaged, cut
// off, of a later format or does not belong together is refused.
func ReadSource(ctx context.Context, path string) (*Source, error) {
	a, err := OpenArchive(ctx, path, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer a.History.Close()
	header := a.History.Exported()
	if header == nil {
		return nil, fmt.Errorf("%s: is a directory; name a file that `varve snapshot save` or `varve log export` wrote", path)
	}
	if err := a.History.Damage(); err != nil {
		return nil, err
	}
	head, chain := a.History.Last()
	if _, err := a.Verify(ctx, a.History, head); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	view, err := a.Once(ctx, head)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if view.Chain() != chain || view.Cluster() != header.Cluster || log.Revision(header.Last) != head {
		return nil, fmt.Errorf("%s: %w", path, &log.CorruptError{Revision: head, What: "its state, its records and what it says of itself do not belong together"})
	}
	s := &Source{Header: header, State: fsm.Resume(view)}
	segments, err := a.History.Segments()
	if err != nil {
		return nil, err
	}
	for _, seg := range segments {
		s.Bytes += seg.Bytes
	}
	return s, nil
}
