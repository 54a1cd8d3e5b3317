package apiserver

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

func TestOnlyRootOwnerAndGroupAreLetIn(t *testing.T) {
	a := authenticator{uid: 1000, group: "no-such-group"}
	for _, tt := range []struct {
		name string
		cred *unix.Ucred
		want connect.Code // 0: let in
	}{
		{"root", &unix.Ucred{Uid: 0}, 0},
		{"the agent's user", &unix.Ucred{Uid: 1000}, 0},
		{"another user", &unix.Ucred{Uid: 1001, Gid: 1001}, connect.CodePermissionDenied},
		{"no credential", nil, connect.CodeUnauthenticated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			actor, err := a.actor(tt.cred)
			switch {
			case tt.want == 0 && (err != nil || actor.Role != eventpb.Role_ROLE_ADMIN):
				t.Errorf("%+v, %v", actor, err)
			case tt.want != 0:
				codeIs(t, err, tt.want)
			}
		})
	}
}

func TestGroupMembersAreLetIn(t *testing.T) {
	a := authenticator{uid: 1000, group: "root"} // gid 0 exists everywhere
	if _, err := a.actor(&unix.Ucred{Uid: 4711, Gid: 0}); err != nil {
		t.Error(err)
	}
}

// Restoring takes more than calling.
func TestWhoMayRestore(t *testing.T) {
	root := &unix.Ucred{Uid: 0}
	own := &unix.Ucred{Uid: 1000, Gid: 1000}
	member := &unix.Ucred{Uid: 4711, Gid: 0} // of the group "root"
	for _, tt := range []struct {
		group, restorers string
		cred             *unix.Ucred
		want             bool
	}{
		{"root", "", root, true},
		{"root", "", own, true},
		{"root", "", member, false},
		{"root", "no-such-group", member, false},
		{"root", "root", member, true},
		{"", "root", member, false}, // may not even call
	} {
		a := authenticator{uid: 1000, group: tt.group, restorers: tt.restorers}
		if actor, _ := a.actor(tt.cred); actor.MayRestore != tt.want {
			t.Errorf("%+v of %+v: %t, want %t", tt.cred, a, actor.MayRestore, tt.want)
		}
	}
	// Found out before the file is taken; what only looks is open to whoever may call.
	ctx := context.WithValue(t.Context(), peerKey{}, &peer{actor: Actor{Role: eventpb.Role_ROLE_ADMIN}})
	if err := mayRestore(ctx, false); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "--restore-group") {
		t.Errorf("a member of the group alone: %v", err)
	}
	if err := mayRestore(ctx, true); err != nil {
		t.Errorf("a dry run: %v", err)
	}
}

func TestEveryPathIsBehindTheCredential(t *testing.T) {
	reached := false
	h := authenticator{uid: 1}.authenticate(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	for _, path := range []string{"/", "/varve.v1.LogService/Append", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}")))
		if reached || w.Code == http.StatusOK {
			t.Errorf("%s: reached %t, status %d", path, reached, w.Code)
		}
	}
}

func TestListenRefusesASocketInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Bind(path, ""); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Fatalf("got %v", err)
	}
}

func TestListenReplacesADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	l2, err := Bind(path, "")
	if err != nil {
		t.Fatal(err)
	}
	l2.Close()
}

func TestStatusTellsDifferences(t *testing.T) {
	k := newKit(t)
	resp, err := k.Agent.Status(t.Context(), connect.NewRequest(&varvev1.StatusRequest{Verify: true}))
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Msg
	if len(s.Differences) != 1 || s.Differences[0].Kind != "missing" {
		t.Errorf("differences: %v", s.Differences)
	}
	for _, c := range s.Checks {
		if c.Ok != (c.Name != "kernel") {
			t.Errorf("check %s: ok is %t: %s", c.Name, c.Ok, c.Message)
		}
	}
}
