package dns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-net/varve/dataplane/dns/relay"
)

// Entry is a question and its answer in the log of questions. A line of its file is
// one as JSON.
type Entry struct {
	Time     time.Time `json:"time"`
	Endpoint string    `json:"endpoint"` // namespace/name
	Client   string    `json:"client"`
	Server   string    `json:"server"`
	Protocol string    `json:"protocol"` // udp, tcp
	Name     string    `json:"name,omitempty"`
	Type     uint16    `json:"type,omitempty"`
	Verdict  string    `json:"verdict"` // allowed, denied, malformed
	// Row is the policy row that allowed it, and Rule the name or pattern in it.
	Row  uint64 `json:"row,omitempty"`
	Rule string `json:"rule,omitempty"`
	// RCode is that of the answer which the endpoint got.
	RCode      int      `json:"rcode"`
	Problem    string   `json:"problem,omitempty"`
	Chain      []string `json:"chain,omitempty"`
	Addresses  []string `json:"addresses,omitempty"`
	TTLSeconds []uint32 `json:"ttl_seconds,omitempty"`
	UpstreamNS int64    `json:"upstream_ns,omitempty"`
	TotalNS    int64    `json:"total_ns"`
}

// Log keeps the last questions in two files of a bounded size: the newer one is
// written to and takes the place of the older when it is full. It is for people and
// may lack the last fraction of a second after a crash.
type Log struct {
	dir  string
	max  int64 // of both files
	lost prometheus.Counter

	// mu guards the lines that wait to be written. Those who ask questions hold it for
	// a moment only, and never wait for the disk.
	mu     sync.Mutex
	lines  []byte
	count  int
	spare  []byte
	change chan struct{} // closed and replaced when lines were written

	file *os.File
	size int64

	replacing sync.RWMutex // held while there may be no file of the log's name
}

// maxWaiting bounds the lines that wait to be written, in bytes.
const maxWaiting = 8 << 20

// writeEvery is how often lines are written.
const writeEvery = 100 * time.Millisecond

const (
	logFile = "dns.jsonl"
	oldFile = "dns.1.jsonl"
)

// OpenLog opens the log of a directory; max bounds its files, in bytes.
func OpenLog(dir string, max int64) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("log of questions: %w", err)
	}
	l := &Log{dir: dir, max: max, change: make(chan struct{})}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(filepath.Join(l.dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log of questions: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("log of questions: %w", err), f.Close())
	}
	l.file, l.size = f, info.Size()
	return nil
}

// add notes a question that is done with.
func (l *Log) add(e *relay.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) >= maxWaiting {
		if l.lost != nil {
			l.lost.Inc()
		}
		return
	}
	l.lines = appendEntry(l.lines, e)
	l.count++
}

// appendEntry writes the line of e: an Entry as JSON, without going through one.
func appendEntry(b []byte, e *relay.Exchange) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","endpoint":"`...)
	b = append(b, e.Ruling.Namespace...)
	b = append(b, '/')
	b = append(b, e.Ruling.Name...)
	b = append(b, `","client":"`...)
	b = e.Client.AppendTo(b)
	b = append(b, `","server":"`...)
	b = e.Server.AppendTo(b)
	b = append(b, `","protocol":"`...)
	if e.Protocol == relay.TCP {
		b = append(b, `tcp"`...)
	} else {
		b = append(b, `udp"`...)
	}
	if len(e.Name) > 0 {
		b = append(b, `,"name":`...)
		b = appendName(b, e.Name)
		b = append(b, `,"type":`...)
		b = strconv.AppendUint(b, uint64(e.Type), 10)
	}
	b = append(b, `,"verdict":"`...)
	b = append(b, verdictName(e.Verdict)...)
	b = append(b, '"')
	if e.Row != 0 {
		b = append(b, `,"row":`...)
		b = strconv.AppendUint(b, e.Row, 10)
	}
	if e.Selector != "" {
		b = append(b, `,"rule":"`...)
		b = append(b, e.Selector...)
		b = append(b, '"')
	}
	b = append(b, `,"rcode":`...)
	b = strconv.AppendInt(b, int64(e.RCode), 10)
	if e.Problem != relay.NoProblem {
		b = append(b, `,"problem":`...)
		b = strconv.AppendQuote(b, string(e.Problem))
	}
	if len(e.Chain) > 0 {
		b = append(b, `,"chain":[`...)
		for i, n := range e.Chain {
			b = separate(b, i)
			b = appendName(b, n)
		}
		b = append(b, ']')
	}
	if len(e.Addresses) > 0 {
		b = append(b, `,"addresses":[`...)
		for i := range e.Addresses {
			b = append(separate(b, i), '"')
			b = append(e.Addresses[i].Addr.AppendTo(b), '"')
		}
		b = append(b, `],"ttl_seconds":[`...)
		for i := range e.Addresses {
			b = strconv.AppendUint(separate(b, i), uint64(e.Addresses[i].TTLSeconds), 10)
		}
		b = append(b, ']')
	}
	if e.Upstream > 0 {
		b = append(b, `,"upstream_ns":`...)
		b = strconv.AppendInt(b, int64(e.Upstream), 10)
	}
	b = append(b, `,"total_ns":`...)
	b = strconv.AppendInt(b, int64(e.Total), 10)
	return append(b, "}\n"...)
}

func separate(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

// appendName quotes a name in presentation form: printable ASCII, where '\' and '"'
// alone need an escape.
func appendName(b, name []byte) []byte {
	b = append(b, '"')
	for _, c := range name {
		if c == '\\' || c == '"' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, '"')
}

func verdictName(v relay.Verdict) string {
	switch v {
	case relay.Allowed:
		return "allowed"
	case relay.Rejected:
		return "denied"
	}
	return "malformed"
}

// run writes what was noted, until ctx ends.
func (l *Log) run(ctx context.Context) error {
	t := time.NewTicker(writeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			l.write()
		}
	}
}

// write writes what waits. What the disk does not take is lost, and counted.
func (l *Log) write() {
	l.mu.Lock()
	lines, count := l.lines, l.count
	l.lines, l.spare, l.count = l.spare[:0], nil, 0
	l.mu.Unlock()
	if len(lines) > 0 {
		if l.size > 0 && l.size+int64(len(lines)) > l.max/2 {
			l.rotate()
		}
		n, err := l.file.Write(lines)
		l.size += int64(n)
		if err != nil && l.lost != nil {
			l.lost.Add(float64(count))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = lines[:0]
	if len(lines) > 0 {
		close(l.change)
		l.change = make(chan struct{})
	}
}

// rotate makes the file the older one. If that fails it grows on until it works.
func (l *Log) rotate() {
	l.replacing.Lock()
	defer l.replacing.Unlock()
	if os.Rename(filepath.Join(l.dir, logFile), filepath.Join(l.dir, oldFile)) != nil {
		return
	}
	old := l.file
	if l.open() != nil {
		l.file = old
		return
	}
	old.Close()
}

// Close writes what waits and closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	l.write()
	return l.file.Close()
}

// Place is where a reader of the log is. Close is due.
type Place struct{ file *os.File }

// Close closes what the place is in.
func (p *Place) Close() error { return p.file.Close() }

// Read calls fn for each entry since a time, oldest first, and returns where it ended.
func (l *Log) Read(since time.Time, fn func(*Entry) error) (*Place, error) {
	seen := func(e *Entry) error {
		if e.Time.Before(since) {
			return nil
		}
		return fn(e)
	}
	// The newer first: were it replaced in between, it would be read as the older.
	f, err := l.newest()
	if err != nil {
		return nil, fmt.Errorf("log of questions: %w", err)
	}
	p := &Place{f}
	old, err := os.Open(filepath.Join(l.dir, oldFile))
	switch {
	case err == nil:
		err = nil
		if !sameFile(old, f) {
			err = readEntries(old, seen)
		}
		err = errors.Join(err, old.Close())
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil {
		err = readEntries(f, seen)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// newest opens the file that is written to.
func (l *Log) newest() (*os.File, error) {
	l.replacing.RLock()
	defer l.replacing.RUnlock()
	return os.Open(filepath.Join(l.dir, logFile))
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, yerr := b.Stat()
	return err == nil && yerr == nil && os.SameFile(x, y)
}

// Follow calls fn for each entry behind a place, until ctx ends. It reads the files,
// so it may be slow without anyone noticing; what is overwritten meanwhile is skipped.
func (l *Log) Follow(ctx context.Context, p *Place, fn func(*Entry) error) error {
	for {
		l.mu.Lock()
		change := l.change
		l.mu.Unlock()
		if err := readEntries(p.file, fn); err != nil {
			return err
		}
		f, err := l.newest()
		if err != nil {
			return fmt.Errorf("log of questions: %w", err)
		}
		if !sameFile(f, p.file) {
			// What was written before it was replaced, and then the next one.
			err := errors.Join(readEntries(p.file, fn), p.file.Close())
			p.file = f
			if err != nil {
				return err
			}
			continue
		}
		f.Close()
		select {
		case <-ctx.Done():
			return nil
		case <-change:
		}
	}
}

// readEntries reads whole lines up to the end; one that is cut short is left for
// the next call.
func readEntries(f *os.File, fn func(*Entry) error) error {
	start, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("log of questions: %w", err)
	}
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			_, err = f.Seek(start, io.SeekStart)
			return err
		}
		if err != nil {
			return fmt.Errorf("log of questions: %w", err)
		}
		start += int64(len(line))
		var e Entry
		if json.Unmarshal(line, &e) != nil {
			continue // cut short by a crash
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
}
