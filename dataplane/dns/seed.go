package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log/eventpb"
)

// seedMagic begins the file of what the agent told a proxy that had lost its
// journal. After it come the number, and then each fact with its length and CRC32C.
const seedMagic = "varve-dns-seed 1\n"

// errSeed is a file that is not as it was written.
var errSeed = errors.New("damaged; remove it, and start the agent, which tells again what the log has")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeSeed puts s into the place of the file, durably.
func writeSeed(path string, s *dnslink.Seed) error {
	out := binary.LittleEndian.AppendUint64([]byte(seedMagic), s.Last)
	for _, f := range s.Facts {
		data, err := proto.Marshal(f)
		if err != nil {
			return fmt.Errorf("seed: %w", err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(data)))
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(data, castagnoli))
		out = append(out, data...)
	}
	err := durable.Replace(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(out)
		return err
	})
	if err != nil {
		return fmt.Errorf("seed %s: %w", path, err)
	}
	return nil
}

// readSeed reads what writeSeed wrote; nil if nothing was.
func readSeed(path string) (*dnslink.Seed, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	if len(raw) < len(seedMagic)+8 || string(raw[:len(seedMagic)]) != seedMagic {
		return nil, fmt.Errorf("seed %s: %w", path, errSeed)
	}
	raw = raw[len(seedMagic):]
	s := &dnslink.Seed{Last: binary.LittleEndian.Uint64(raw)}
	for raw = raw[8:]; len(raw) > 0; {
		if len(raw) < 8 {
			return nil, fmt.Errorf("seed %s: %w", path, errSeed)
		}
		n, sum := int(binary.LittleEndian.Uint32(raw)), binary.LittleEndian.Uint32(raw[4:])
		if raw = raw[8:]; n > len(raw) || crc32.Checksum(raw[:n], castagnoli) != sum {
			return nil, fmt.Errorf("seed %s: %w", path, errSeed)
		}
		f := new(eventpb.DnsObserved)
		if err := proto.Unmarshal(raw[:n], f); err != nil {
			return nil, fmt.Errorf("seed %s: %w: %w", path, errSeed, err)
		}
		s.Facts = append(s.Facts, f)
		raw = raw[n:]
	}
	return s, nil
}
