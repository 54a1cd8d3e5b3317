package dns

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// musl builds a client that asks with musl's resolver.
func (s *stage) musl() string {
	s.t.Helper()
	program := filepath.Join(s.t.TempDir(), "getaddrinfo")
	if out, err := exec.CommandContext(s.t.Context(), "musl-gcc", "-static", "-O2", "-o", program, "testdata/getaddrinfo.c").CombinedOutput(); err != nil {
		s.t.Fatalf("musl-gcc: %v\n%s\n`hack/deps.sh dns` installs it", err, out)
	}
	return program
}

// musl's resolver asks for both families at once and from one socket. It waits on at an
// answer that is REFUSED, so names that no rule allows do not exist here. What of an answer
// is cut it does without, or asks for over TCP, by its version.
func TestMusl(t *testing.T) {
	t.Parallel()
	w := newTown(t, "--tofqdns-dns-reject-response-code", "nameError")
	program := w.musl()
	for i, server := range outsideAddr {
		number := 330 + i
		out, err := w.command(w.client, server, program, fmt.Sprintf("n%d.domain.com", number))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range site(number) {
			if !slices.Contains(strings.Fields(out), a.String()) {
				t.Fatalf("want %s:\n%s", a, out)
			}
			w.reaches(w.client, a)
		}
		if out, err := w.command(w.client, server, program, "n330.example.com"); err == nil {
			t.Fatalf("a name that no rule allows:\n%s", out)
		}
	}
	out, err := w.command(w.client, w.kubeDNS.addr[0], program, "alias.domain.com")
	if err != nil || !strings.Contains(out, site(302)[0].String()) {
		t.Fatalf("an alias: %v\n%s", err, out)
	}
	w.reaches(w.client, site(302)[0])
	out, err = w.command(w.client, outsideAddr[0], program, "big.domain.com")
	if got := len(strings.Fields(out)); err != nil || got < 10 {
		t.Fatalf("an answer that is too long for a datagram: %d addresses, %v\n%s", got, err, out)
	}

	// A server that loses two of three questions costs time and nothing else.
	for number := range 2 {
		name := fmt.Sprintf("lossy%d.domain.com", number)
		out, err := w.resolving(w.other, outsideAddr[number%2], "timeout:15 attempts:10", program, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, a := range site(340 + number) {
			if !slices.Contains(strings.Fields(out), a.String()) {
				t.Fatalf("%s: want %s:\n%s", name, a, out)
			}
			w.reaches(w.other, a)
		}
	}
	w.equal()
}
