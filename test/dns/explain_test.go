package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
)

// events gathers what monitor says, from now on.
func (s *stage) events() (seen func(func(*varvev1.DatapathEvent) bool) error) {
	s.t.Helper()
	stream, err := s.client.Datapath.Monitor(s.t.Context(), connect.NewRequest(&varvev1.MonitorRequest{}))
	if err != nil {
		s.t.Fatal(err)
	}
	all := make(chan *varvev1.DatapathEvent, 1<<16)
	go func() {
		defer close(all)
		for stream.Receive() {
			all <- stream.Msg()
		}
	}()
	var had []*varvev1.DatapathEvent
	return func(is func(*varvev1.DatapathEvent) bool) error {
		if slices.ContainsFunc(had, is) {
			return nil
		}
		end := time.After(limit)
		for {
			select {
			case e, ok := <-all:
				if !ok {
					return errors.New("the stream ended")
				}
				if had = append(had, e); is(e) {
					return nil
				}
			case <-end:
				return fmt.Errorf("no such event among %d", len(had))
			}
		}
	}
}

// verdict is policy's on a connection of the client to port 443.
func (w *town) verdict(to string) *varvev1.VerdictResponse {
	w.t.Helper()
	r, err := w.stage.client.Policies.Verdict(w.t.Context(), connect.NewRequest(&varvev1.VerdictRequest{From: w.client.ref, To: to, Port: "443/tcp"}))
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Msg
}

// told is facts in short: the name, its address and what they do.
func told(facts []*varvev1.NameFact) string {
	var out []string
	for _, f := range facts {
		out = append(out, f.Name+" "+f.Address+" "+f.Standing)
	}
	return strings.Join(out, ", ")
}

// Whatever a name opens says by which name: the verdict, the monitor, the map, and the
// past.
func TestWhatNamesOpenIsExplained(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	to, never, server := site(1)[0], site(2)[0], outsideAddr[0]
	seen := w.events()
	if v := w.verdict(to.String()); v.Allowed || !v.Egress.ByName || len(v.Egress.Facts) > 0 {
		t.Errorf("before it was told: %v", v)
	}
	w.dropped(w.client, never)
	w.resolves(w.client, server, "n1.domain.com", site(1))
	w.reaches(w.client, to)
	admits := fmt.Sprintf("n1.domain.com. %s admits", to)
	if v := w.verdict(to.String()); !v.Allowed || told(v.Egress.Facts) != admits || len(v.Egress.Rules) == 0 {
		t.Errorf("once it was told: %v", v)
	}
	if v := w.verdict("n1.domain.com"); !v.Allowed || v.Name.Judged == "" || len(v.Name.Addresses) != 2 || len(v.Name.Rules) == 0 {
		t.Errorf("the name: %v", v)
	}
	if v := w.verdict("n2.domain.com"); v.Allowed || v.Name.Judged != "" || len(v.Name.Addresses) != 0 || len(v.Name.Rules) == 0 {
		t.Errorf("a name that was not asked for: %v", v)
	}
	is := func(kind string, dst netip.Addr, facts string) func(*varvev1.DatapathEvent) bool {
		return func(e *varvev1.DatapathEvent) bool {
			return e.Type == kind && e.Destination == dst.String() && e.Endpoint == w.client.ref && e.ByName && told(e.Facts) == facts
		}
	}
	if err := seen(is("new-flow", to, admits)); err != nil {
		t.Error("monitor, a flow that a name admits:", err)
	}
	if err := seen(is("drop", never, "")); err != nil {
		t.Error("monitor, a packet that no name admits:", err)
	}

	var revision uint64
	w.eventually("the log has it", func(ctx context.Context) error {
		v := w.verdict(to.String())
		if len(v.Egress.Facts) == 1 && v.Egress.Facts[0].Revision > 0 {
			revision = v.Egress.Facts[0].Revision
			return nil
		}
		return fmt.Errorf("%v", v.Egress.Facts)
	})
	for _, at := range []string{"", "now"} {
		r, err := w.stage.client.Datapath.Dump(t.Context(), connect.NewRequest(&varvev1.DumpRequest{Map: varvev1.Map_MAP_FQDN, Endpoint: w.client.ref, At: at}))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(r.Msg.Names, func(x *varvev1.FQDNRow) bool { return x.Address == to.String() })
		if i < 0 || (r.Msg.At != nil) != (at != "") {
			t.Fatalf("map at %q: %v", at, r.Msg)
		}
		row := r.Msg.Names[i]
		if len(row.Classes) != 1 || row.Classes[0].Names != "*.domain.com." || !slices.Equal(row.Classes[0].Told, []string{"n1.domain.com."}) ||
			time.Until(time.Unix(0, row.Classes[0].ExpiresUnixNs)) < ttl/2*time.Second || len(row.Rules) != 1 || !slices.Contains(row.Revisions, revision) {
			t.Errorf("map at %q: %v", at, row)
		}
	}
	p, err := w.stage.client.Audit.Provenance(t.Context(), connect.NewRequest(&varvev1.ProvenanceRequest{Map: "fqdn", Key: []string{"client", to.String()}}))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(p.Msg.Events, func(e *varvev1.AuditEvent) bool { return e.Revision == revision && e.Kind == "dns-observed" }) || len(p.Msg.Rules) != 1 {
		t.Errorf("provenance: %v", p.Msg)
	}
	why := w.why(to.String(), "")
	if why.Outcome != "allowed" || why.Flip.GetRevision() != revision || told(why.Sides[0].Facts) != admits {
		t.Errorf("why: %v", why)
	}
	if !slices.ContainsFunc(why.Events, func(e *varvev1.AuditEvent) bool {
		return e.Revision == revision && strings.Contains(e.Text, "default/client asks for n1.domain.com and is told "+to.String()+" until ")
	}) {
		t.Errorf("why: the answer is not in the chain of events: %v", why.Events)
	}
	if before := w.why(to.String(), fmt.Sprint(revision-1)); before.Outcome != "denied" {
		t.Errorf("why, before: %v", before)
	}

	// A change that no event made.
	short := site(301)[0]
	if err := w.opens(w.client, server, short).Close(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the fact expires", func(context.Context) error {
		if why = w.why(short.String(), ""); why.Outcome != "denied" || len(why.Flip.GetExpired()) == 0 {
			return fmt.Errorf("%v", why)
		}
		return nil
	})
	if f := why.Flip; f.Before != "allowed" || told(f.Expired) != fmt.Sprintf("short.domain.com. %s expired", short) || f.TimeUnixNs != f.Expired[0].ExpiresUnixNs ||
		!strings.Contains(f.Event.Text, "short.domain.com") {
		t.Errorf("the change: %v", f)
	}
	w.equal()
}

// why asks for the reasons of a verdict on a connection of the client to port 443.
func (w *town) why(to, at string) *varvev1.WhyResponse {
	w.t.Helper()
	r, err := w.stage.client.Audit.Why(w.t.Context(), connect.NewRequest(&varvev1.WhyRequest{From: w.client.ref, To: to, Port: "443/tcp", At: at}))
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Msg
}

// disturb edits, adds and deletes rows of the map of names.
func (w *town) disturb() (edited, deleted netip.Addr) {
	w.t.Helper()
	maps, err := bpf.OpenPinned(filepath.Join(w.dir, "bpf"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer maps.Close()
	var key abi.FQDNKey
	var value, stolen abi.FQDNValue
	rows := maps.FQDN.Iterate()
	for rows.Next(&key, &value) {
		stolen = value
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	edited, deleted = site(1)[0], site(2)[0]
	row := func(a netip.Addr) *abi.FQDNKey { return &abi.FQDNKey{Endpoint: key.Endpoint, Addr: abi.AddrFrom(a)} }
	forever := stolen
	forever.ExpiresSeconds[0] += 1 << 20
	for _, err := range []error{maps.FQDN.Put(row(edited), &forever), maps.FQDN.Delete(row(deleted)), maps.FQDN.Put(row(site(9)[0]), &stolen)} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return edited, deleted
}

// Rows of the map of names that somebody else has edited, added or deleted are found, told
// of and put right.
func TestStrangersInTheMapOfNames(t *testing.T) {
	t.Parallel()
	t.Run("told", func(t *testing.T) {
		t.Parallel()
		w := newTown(t, "--drift-interval", "1h")
		w.resolves(w.client, outsideAddr[0], "n1.domain.com", site(1))
		w.resolves(w.client, outsideAddr[0], "n2.domain.com", site(2))
		w.equal()
		edited, deleted := w.disturb()
		st, err := w.status(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, d := range st.Differences {
			got[d.Table+" "+d.Key] = d.Kind
		}
		for key, kind := range map[string]string{edited.String(): "differs", deleted.String(): "missing", site(9)[0].String(): "extra"} {
			if got["fqdn default/client "+key] != kind {
				t.Errorf("%s is %q, want %q", key, got["fqdn default/client "+key], kind)
			}
		}
		if i := slices.IndexFunc(st.Checks, func(c *varvev1.Check) bool { return c.Name == "kernel" }); st.Checks[i].Ok || len(st.Differences) != 3 {
			t.Errorf("status: %v", st)
		}
	})
	t.Run("put right", func(t *testing.T) {
		t.Parallel()
		w := newTown(t)
		w.resolves(w.client, outsideAddr[0], "n1.domain.com", site(1))
		w.resolves(w.client, outsideAddr[0], "n2.domain.com", site(2))
		w.equal()
		seen := w.events()
		_, deleted := w.disturb()
		w.eventually("the rows are as they were", func(ctx context.Context) error {
			st, err := w.status(ctx, true)
			if err == nil && (len(st.Differences) > 0 || st.Drift.Repaired < 3) {
				err = fmt.Errorf("%v %v", st.Drift, st.Differences)
			}
			return err
		})
		w.reaches(w.client, deleted)
		w.dropped(w.client, site(9)[0])
		if err := seen(func(e *varvev1.DatapathEvent) bool {
			return e.Type == "drift" && strings.Contains(e.Drift.What, deleted.String()+" missing")
		}); err != nil {
			t.Error("monitor:", err)
		}
	})
}
