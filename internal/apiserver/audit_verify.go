package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/inforce"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// maxMismatches bounds an answer; one is enough to know.
const maxMismatches = 100

// Verify implements AuditService.
func (a auditService) Verify(ctx context.Context, req *connect.Request[varvev1.AuditVerifyRequest]) (*connect.Response[varvev1.AuditVerifyResponse], error) {
	if a.s.InForce == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("an archive has no record of what was in force; ask the agent, without --log"))
	}
	records, err := a.s.InForce()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	resp := &varvev1.AuditVerifyResponse{Node: a.s.Node}
	if records, err = a.chosen(ctx, req.Msg, records, resp); err != nil {
		return nil, err
	}
	if err := a.compare(ctx, records, resp); err != nil {
		return nil, pastError(ctx, err)
	}
	return connect.NewResponse(resp), nil
}

// chosen are the records that a request is about and that can be recomputed, by
// revision.
func (a auditService) chosen(ctx context.Context, req *varvev1.AuditVerifyRequest, records []inforce.Record, resp *varvev1.AuditVerifyResponse) ([]inforce.Record, error) {
	oldest, err := a.s.Past.Replayable()
	if err != nil {
		return nil, pastError(ctx, err)
	}
	since, until := log.Revision(0), a.s.Log.View().Revision()
	for _, limit := range []struct {
		field, text string
		to          *log.Revision
	}{{"since", req.Since, &since}, {"until", req.Until, &until}} {
		if limit.text == "" {
			continue
		}
		m, err := a.s.Past.Resolve(ctx, limit.text)
		if err != nil {
			return nil, pastError(ctx, fmt.Errorf("%s: %w", limit.field, err))
		}
		*limit.to = m.Revision
	}
	var out []inforce.Record
	for _, r := range records {
		switch {
		case r.Revision < since || r.Revision > until:
		case r.Revision < oldest:
			resp.Skipped++
		default:
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(x, y inforce.Record) int { return int(x.Revision) - int(y.Revision) })
	return out, nil
}

// compare recomputes the tables of each record.
func (a auditService) compare(ctx context.Context, records []inforce.Record, resp *varvev1.AuditVerifyResponse) error {
	revisions := make([]log.Revision, len(records))
	for i, r := range records {
		revisions[i] = r.Revision
	}
	of := projections.New(a.s.Node, projections.Options{})
	return a.s.Past.Walk(ctx, revisions, func(v fsm.View) error {
		r := records[resp.Compared]
		tables, _, err := of.Update(v)
		var digest log.Hash
		if err == nil {
			digest = tables.Digest()
		} else if !errors.Is(err, projections.ErrUnknownNode) {
			return err
		}
		if resp.Compared == 0 {
			resp.First = uint64(r.Revision)
		}
		resp.Compared++
		resp.Last = uint64(r.Revision)
		if digest != r.Digest && len(resp.Mismatches) < maxMismatches {
			resp.Mismatches = append(resp.Mismatches, &varvev1.AuditMismatch{
				Revision: uint64(r.Revision), JournalSeq: r.JournalSeq, TimeUnixNs: r.TimeNS,
				RecordedDigest: r.Digest[:], ReplayedDigest: digest[:],
			})
		}
		return nil
	})
}
