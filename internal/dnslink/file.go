package dnslink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/varve-net/varve/internal/durable"
)

// ErrDamaged is returned by ReadRules for a file that is not as it was written.
var ErrDamaged = errors.New("damaged")

// castagnoli is the polynomial of the header's checksum.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the first line of the file: its format, and a checksum over the rest.
const header = "varve-dns-rules 1 crc32c=%08x\n"

// WriteRules puts r into the place of the file, which has either the old content
// or the new one, also after a crash. When it returns the new one is durable.
func WriteRules(path string, r *Rules) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("rules file %s: %w", path, err)
	}
	err = durable.Replace(path, 0o600, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, header, crc32.Checksum(body, castagnoli)); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	})
	if err != nil {
		return fmt.Errorf("rules file %s: %w", path, err)
	}
	return nil
}

// ReadRules reads what WriteRules wrote. fs.ErrNotExist if nothing was ever
// written, ErrDamaged if it has changed since.
func ReadRules(path string) (*Rules, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("rules file: %w", err)
	}
	first, body, _ := bytes.Cut(raw, []byte("\n"))
	var sum uint32
	if n, err := fmt.Sscanf(string(first)+"\n", header, &sum); err != nil || n != 1 {
		return nil, fmt.Errorf("rules file %s: %w: %.60q is no header; start the agent, which writes it anew", path, ErrDamaged, first)
	}
	if sum != crc32.Checksum(body, castagnoli) {
		return nil, fmt.Errorf("rules file %s: %w: its checksum does not match; start the agent, which writes it anew", path, ErrDamaged)
	}
	var r Rules
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("rules file %s: %w: %w", path, ErrDamaged, err)
	}
	return &r, r.check()
}

// check finds sets that do not exist.
func (r *Rules) check() error {
	for _, x := range r.Rows {
		if x.Set < EveryName || x.Set >= len(r.Sets) {
			return fmt.Errorf("rules: row %#x: %w: set %d of %d", x.ID, ErrDamaged, x.Set, len(r.Sets))
		}
	}
	for _, x := range r.Classes {
		if x.Set < 0 || x.Set >= len(r.Sets) {
			return fmt.Errorf("rules: class %#x: %w: set %d of %d", x.ID, ErrDamaged, x.Set, len(r.Sets))
		}
	}
	return nil
}
