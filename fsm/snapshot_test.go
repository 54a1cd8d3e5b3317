package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// rich is a state with every sort of row.
func rich(t testing.TB) *fold {
	f := base(t)
	f.ok(
		setNamespace("default", labels("team", "a"), id("r1"), at(5*second)),
		create("n1", "default", "db", 1, "10.0.0.2", labels("app", "db"), seq(1), with(func(c *eventpb.EndpointCreated) {
			c.Addresses = append(c.Addresses, ip("2001:db8::2"))
			c.NamedPorts = []*eventpb.NamedPort{{Name: "http", Protocol: 6, Port: 80}}
			c.HostInterface, c.ContainerInterface, c.Netns, c.NetnsId = "v1", "eth0", "/run/netns/db", "4:4026531840"
			c.Mtu, c.BigTcp = 9000, true
		})),
		create("n2", "other", "x", 1, "", nil),
		updateNode("n1", []string{"192.0.2.1", "2001:db8::1"}, []string{"10.0.0.0/24", "2001:db8:1::/64"}),
		setPolicy(cnp("default", "p"), "web", id("r2")),
		setPolicy(cnp("default", "q"), "web"),
		join("n3", []string{"192.0.2.3"}),
		leave("n3"),
	)
	f.do(deleteNamespace("none", id("r3"))) // a rejection in the window
	f.ok(
		observe("n1", "default", "db", 1, "api.example.com.", map[string]int64{"203.0.113.7": 60, "2001:db8::7": 90}, seq(1)),
		observe("n1", "default", "db", 1, "api.example.com.", map[string]int64{"203.0.113.8": 70, "2001:db8::7": 80}, seq(2), func(e *eventpb.Event) {
			e.GetDnsObserved().Chain = []string{"edge.example.net."}
		}),
		observe("n1", "default", "db", 1, "old.example.com.", map[string]int64{"203.0.113.9": 10}, seq(3)),
		collected("n1", "default", "db", 1, "old.example.com.", []string{"203.0.113.9"}, seq(4)),
	)
	f.ok(restoring(f.View(), "half")[:2]...) // a restore that is under way
	return f
}

func TestSnapshotRoundTrip(t *testing.T) {
	f := rich(t)
	file := snapshot(t, f.View())
	// Whatever pieces the reader gets it in.
	s, err := ReadSnapshot(iotest.OneByteReader(bytes.NewReader(file)))
	if err != nil {
		t.Fatal(err)
	}
	sameViews(t, "restored", s.View(), f.View())
	for range 4 {
		if !bytes.Equal(snapshot(t, f.View()), file) {
			t.Fatal("one state, two files")
		}
	}
	empty := New("c").View()
	sameViews(t, "empty", restore(t, snapshot(t, empty)).View(), empty)
	var zero View
	sameViews(t, "zero", restore(t, snapshot(t, zero)).View(), zero)

	// What is not in the file works again: ids, addresses, labels, retries.
	g := &fold{State: s, t: t}
	if r := g.do(deleteNamespace("none", id("r3"))); r.Outcome != log.OutcomeRepeat || r.Reason == "" {
		t.Errorf("a retry over a snapshot: %+v", r)
	}
	if r := g.do(create("n1", "default", "new", 1, "2001:db8::2", nil)); !strings.Contains(r.Reason, "default/db has it") {
		t.Errorf("an address that is taken: %+v", r)
	}
	g.ok(create("n1", "default", "new", 1, "192.0.2.3", labels("app", "db")))
	if got, want := g.identity("default", "new"), g.identity("default", "db"); got != want {
		t.Errorf("identity %d, want %d", got, want)
	}
}

func TestSnapshotDamage(t *testing.T) {
	file := snapshot(t, rich(t).View())
	for n := range file {
		if s, err := ReadSnapshot(bytes.NewReader(file[:n])); !errors.Is(err, log.ErrCorrupt) || s != nil {
			t.Fatalf("cut to %d of %d bytes: %v, want ErrCorrupt", n, len(file), err)
		}
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		if s, err := ReadSnapshot(bytes.NewReader(bad)); !errors.Is(err, log.ErrCorrupt) || s != nil {
			t.Fatalf("bit %d of byte %d flipped: %v, want ErrCorrupt", i%8, i, err)
		}
	}
	for name, bad := range map[string][]byte{
		"another file": []byte("SQLite format 3\x00 and so on"),
		"more":         append(bytes.Clone(file), 0),
	} {
		if _, err := ReadSnapshot(bytes.NewReader(bad)); !errors.Is(err, log.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	broken := errors.New("broken disk")
	for _, n := range []int{0, 10, 200, len(file)} {
		r := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken))
		if _, err := ReadSnapshot(r); !errors.Is(err, broken) || errors.Is(err, log.ErrCorrupt) {
			t.Errorf("the reader fails after %d bytes: %v", n, err)
		}
	}
}

// parsed is a snapshot's content, to be written again with right checksums.
type parsed struct {
	header  *eventpb.SnapshotHeader
	records []*eventpb.SnapshotRecord
}

func parse(t testing.TB, file []byte) parsed {
	t.Helper()
	sr := snapshotReader{r: bufio.NewReader(bytes.NewReader(file[len(snapshotMagic):])), sum: sha256.New()}
	p := parsed{header: new(eventpb.SnapshotHeader)}
	b, err := sr.frame("header")
	if err == nil {
		err = log.UnmarshalMessage(b, p.header)
	}
	for err == nil {
		if b, err = sr.frame("record"); b == nil || err != nil {
			break
		}
		r := new(eventpb.SnapshotRecord)
		err = log.UnmarshalMessage(b, r)
		p.records = append(p.records, r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p parsed) write(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := snapshotWriter{sum: sha256.New()}
	w.w = io.MultiWriter(&b, w.sum)
	w.write([]byte(snapshotMagic))
	w.frame(p.header)
	for _, r := range p.records {
		w.record(r)
	}
	w.write([]byte{0})
	w.write(binary.LittleEndian.AppendUint64(nil, w.count))
	w.write(w.sum.Sum(nil))
	if w.err != nil {
		t.Fatal(w.err)
	}
	return b.Bytes()
}

func (p parsed) namespace() *eventpb.SnapshotNamespace { return p.find("namespace").GetNamespace() }
func (p parsed) node() *eventpb.SnapshotNode           { return p.find("node").GetNode() }
func (p parsed) identity() *eventpb.SnapshotIdentity   { return p.find("identity").GetIdentity() }
func (p parsed) endpoint() *eventpb.SnapshotEndpoint   { return p.find("endpoint").GetEndpoint() }
func (p parsed) policy() *eventpb.SnapshotPolicy       { return p.find("policy").GetPolicy() }
func (p parsed) request() *eventpb.SnapshotRequest     { return p.find("request").GetRequest() }
func (p parsed) name() *eventpb.SnapshotName           { return p.find("name").GetName() }

// part is one of the parts, which are the last records.
func (p parsed) part(i int) *eventpb.SnapshotPart { return p.records[len(p.records)-2+i].GetPart() }

// find is the first record of a kind.
func (p parsed) find(kind string) *eventpb.SnapshotRecord {
	for _, r := range p.records {
		m := r.ProtoReflect()
		if of := m.WhichOneof(m.Descriptor().Oneofs().ByName("record")); of != nil && of.TextName() == kind {
			return r
		}
	}
	return nil
}

// Files with right checksums that no State wrote.
func TestSnapshotForgery(t *testing.T) {
	file := snapshot(t, rich(t).View())
	if got := parse(t, file).write(t); !bytes.Equal(got, file) {
		t.Fatal("parsed and written again it is another file")
	}
	for name, c := range map[string]struct {
		forge func(p *parsed)
		want  string
	}{
		"format":              {func(p *parsed) { p.header.Format = 0 }, "format"},
		"digest":              {func(p *parsed) { p.header.Digest[0]++ }, "digest"},
		"short digest":        {func(p *parsed) { p.header.Digest = nil }, "digest"},
		"short chain":         {func(p *parsed) { p.header.Chain = nil }, "chain"},
		"no chain":            {func(p *parsed) { clear(p.header.Chain) }, "has chain"},
		"time":                {func(p *parsed) { p.header.TimeUnixNs = -1 }, "time"},
		"next identity":       {func(p *parsed) { p.header.NextIdentity++ }, "digest"},
		"no next identity":    {func(p *parsed) { p.header.NextIdentity = 0 }, "next_identity"},
		"revision":            {func(p *parsed) { p.header.Revision = 1 }, "revision"},
		"cluster":             {func(p *parsed) { p.header.Cluster = "other" }, "identity"},
		"a row less":          {func(p *parsed) { p.records = p.records[:len(p.records)-1] }, "digest"},
		"a row twice":         {func(p *parsed) { p.records = append(p.records, p.records[len(p.records)-1]) }, "order"},
		"order of rows":       {func(p *parsed) { p.records[1], p.records[2] = p.records[2], p.records[1] }, "order"},
		"order of sections":   {func(p *parsed) { p.records[0], p.records[1] = p.records[1], p.records[0] }, "order"},
		"empty record":        {func(p *parsed) { p.records[0].Record = nil }, "count"},
		"namespace labels":    {func(p *parsed) { p.namespace().Set.Labels["team"] = "b" }, "identity"},
		"namespace name":      {func(p *parsed) { p.namespace().Set.Name = "" }, "namespace"},
		"namespace label":     {func(p *parsed) { delete(p.namespace().Set.Labels, labelNamespaceName) }, labelNamespaceName},
		"bad namespace label": {func(p *parsed) { p.namespace().Set.Labels["-"] = "" }, "label"},
		"namespace revision":  {func(p *parsed) { p.namespace().Revision = 99 }, "revision 99"},
		"node empty":          {func(p *parsed) { p.node().Joined = nil }, "node"},
		"node endpoint id":    {func(p *parsed) { p.node().NextEndpointId = 1 }, "id 2 of node n1"},
		"node endpoint id 0":  {func(p *parsed) { p.node().NextEndpointId = 0 }, "next_endpoint_id"},
		"node left":           {func(p *parsed) { p.node().Left = true }, "has not joined"},
		"node journal":        {func(p *parsed) { p.node().JournalSeq++ }, "digest"},
		"node address":        {func(p *parsed) { p.node().Joined.Addresses[0] = ip("192.0.2.2") }, "has it"},
		"identity number":     {func(p *parsed) { p.identity().Id = 255 }, "number"},
		"identity order":      {func(p *parsed) { p.identity().Id = 300 }, "order"},
		"identity labels":     {func(p *parsed) { p.identity().Labels[0] = "x" }, "label"},
		"label not canonical": {func(p *parsed) { p.identity().Labels[0] = "k8s:app" }, "canonical"},
		"labels unsorted": {func(p *parsed) {
			l := p.identity().Labels
			l[0], l[1] = l[1], l[0]
		}, "sorted"},
		"identity twice": {func(p *parsed) {
			for _, r := range p.records {
				if i := r.GetIdentity(); i != nil {
					i.Labels = p.identity().Labels
				}
			}
		}, "same labels"},
		"released in use":      {func(p *parsed) { p.identity().ReleasedRevision = 0; p.identity().ReleasedTimeUnixNs = 0 }, "endpoints have it"},
		"released when":        {func(p *parsed) { p.identity().ReleasedRevision = 0 }, "released at time"},
		"released later":       {func(p *parsed) { p.identity().ReleasedTimeUnixNs = 99 * second }, "released at time"},
		"released before":      {func(p *parsed) { p.identity().ReleasedRevision = 1 }, "revision 1"},
		"endpoint empty":       {func(p *parsed) { p.endpoint().Created = nil }, "endpoint"},
		"endpoint identity":    {func(p *parsed) { p.endpoint().Identity = 999 }, "identity 999"},
		"endpoint of another":  {func(p *parsed) { p.endpoint().Identity++ }, "identity"},
		"endpoint of released": {func(p *parsed) { p.endpoint().Identity = 256 }, "not in use"},
		"endpoint labels":      {func(p *parsed) { p.endpoint().Created.Labels["app"] = "x" }, "identity"},
		"endpoint id":          {func(p *parsed) { p.endpoint().Id = 0 }, "id 0"},
		"endpoint id twice":    {func(p *parsed) { p.endpoint().Id = 1 }, "id 1"},
		"endpoint address":     {func(p *parsed) { p.endpoint().Created.Addresses[0] = ip("192.0.2.1") }, "node n1 has it"},
		"endpoint revisions":   {func(p *parsed) { p.endpoint().CreatedRevision = 0 }, "revision 0"},
		"endpoint MAC":         {func(p *parsed) { p.endpoint().Created.Mac[5]++ }, "digest"},
		"policy":               {func(p *parsed) { p.policy().Set.Specs = nil }, "policy"},
		"policy empty":         {func(p *parsed) { p.policy().Set = nil }, "policy"},
		"policy order":         {func(p *parsed) { p.policy().Set.Ref.Name = "z" }, "order"},
		"policy revisions":     {func(p *parsed) { p.policy().CreatedRevision = p.policy().Revision + 1 }, "revision"},
		"policy manifest":      {func(p *parsed) { p.policy().Set.Manifest = "{}" }, "digest"},
		"request id":           {func(p *parsed) { p.request().Id = "" }, "id of 0"},
		"request fingerprint":  {func(p *parsed) { p.request().Fingerprint = nil }, "fingerprint"},
		"request outcome":      {func(p *parsed) { p.request().Outcome = 3 }, "outcome"},
		"request huge outcome": {func(p *parsed) { p.request().Outcome = 257 }, "outcome"},
		"request reason":       {func(p *parsed) { p.request().Reason = "x" }, "reason"},
		"request revision":     {func(p *parsed) { p.request().Revision = 0 }, "revision 0"},
		"name without dot":     {func(p *parsed) { p.name().Name = "a" }, "dot"},
		"name of nobody":       {func(p *parsed) { p.name().Ref.Name = "none" }, "does not exist"},
		"name empty":           {func(p *parsed) { p.name().Addresses = nil }, "without"},
		"name order":           {func(p *parsed) { a := p.name().Addresses; a[0], a[1] = a[1], a[0] }, "order"},
		"name expiry":          {func(p *parsed) { p.name().Addresses[0].ExpiresUnixNs++ }, "digest"},
		"name revisions":       {func(p *parsed) { p.name().Addresses[0].Revision = 99 }, "revision"},
		"part of another":      {func(p *parsed) { p.part(1).Staged.Restore = "other" }, "is of restore"},
		"part number":          {func(p *parsed) { p.part(1).Staged.Part = 7 }, "the next one is 1"},
		"part missing":         {func(p *parsed) { p.part(0).Staged = nil }, "restore"},
		"part digest":          {func(p *parsed) { p.part(0).Staged.Digest[0]++ }, "digest"},
		"part rows":            {func(p *parsed) { p.part(1).Staged.Policies[0].Manifest = "{}" }, "digest"},
		"part policy":          {func(p *parsed) { p.part(1).Staged.Policies[0].Specs = nil }, "policies[0]"},
		"part time":            {func(p *parsed) { p.part(0).TimeUnixNs = 99 * second }, "time"},
		"part revision":        {func(p *parsed) { p.part(0).Revision = 99 }, "revision 99"},
		"part node":            {func(p *parsed) { p.part(0).Node = "n9" }, "digest"},
		"request order":        {func(p *parsed) { p.request().Revision = 12 }, "order"},
	} {
		t.Run(name, func(t *testing.T) {
			p := parse(t, file)
			c.forge(&p)
			s, err := ReadSnapshot(bytes.NewReader(p.write(t)))
			if !errors.Is(err, log.ErrCorrupt) || !strings.Contains(err.Error(), c.want) || s != nil {
				t.Errorf("%v, want ErrCorrupt that says %q", err, c.want)
			}
		})
	}
}

func TestSnapshotOfALaterVersion(t *testing.T) {
	file := snapshot(t, rich(t).View())
	p := parse(t, file)
	p.header.Format++
	if _, err := ReadSnapshot(bytes.NewReader(p.write(t))); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("format: %v, want ErrUpgradeNeeded", err)
	}
	// A kind of record that this version does not know.
	record := protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), nil)
	b := binary.AppendUvarint(nil, uint64(len(record)))
	b = binary.LittleEndian.AppendUint32(b, log.Checksum(record))
	b = append(b, record...)
	header := len(snapshotMagic) + 1 + 4 + int(file[len(snapshotMagic)])
	if file[len(snapshotMagic)] >= 0x80 {
		t.Fatal("the header's length takes two bytes: mend this test")
	}
	b = append(bytes.Clone(file[:header]), b...)
	if _, err := ReadSnapshot(bytes.NewReader(b)); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("record: %v, want ErrUpgradeNeeded", err)
	}
}

func TestWriteSnapshotReportsTheWriter(t *testing.T) {
	full := errors.New("disk full")
	r, w := io.Pipe()
	if err := r.CloseWithError(full); err != nil {
		t.Fatal(err)
	}
	if err := rich(t).View().WriteSnapshot(w); !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
}
