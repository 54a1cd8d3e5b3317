package verdict

import (
	"fmt"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
)

// Name is what policy says of a DNS name, beside what holds for whatever address
// it may have.
type Name struct {
	// Selected are the subject's rules that select the name.
	Selected []Rule
}

// maxName is the longest DNS name, in characters (RFC 1035, 2.3.4).
const maxName = 253

func dnsName(s string) (Party, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}) || strings.Contains(name, "..") || name[0] == '.' {
		return Party{}, fmt.Errorf("%q: %w; give NAMESPACE/NAME of an endpoint, an address, reserved:IDENTITY or a DNS name", s, ErrParty)
	}
	return Party{Name: name + "."}, nil
}

// askName answers for an address of the world that no rule names.
func askName(view fsm.View, tables TablesOf, q Question) (*Answer, error) {
	world := Party{Identity: abi.IdentityWorldIPv4}
	if e := q.From.Endpoint; q.From.Addr.Is6() || e != nil && !q.From.Addr.IsValid() && !e.IPv4.IsValid() {
		world.Identity = abi.IdentityWorldIPv6
	}
	asked := q
	asked.To = world
	a, err := Ask(view, tables, asked)
	if err != nil {
		return nil, err
	}
	a.To, a.Name = q.To, &Name{}
	return a, nil
}
