package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"slices"
	"strconv"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log/eventpb"
)

// Actor is an authenticated caller.
type Actor struct {
	Role eventpb.Role
	Name string // "unix:uid=0,gid=0,pid=4711"
}

// Proto is the actor as an event carries it.
func (a Actor) Proto() *eventpb.Actor { return &eventpb.Actor{Role: a.Role, Name: a.Name} }

type credentialKey struct{}

// withPeerCredentials is an http.Server's ConnContext: it asks the kernel once,
// at accept, who is at the other end of a unix socket.
func withPeerCredentials(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return ctx
	}
	return context.WithValue(ctx, credentialKey{}, cred)
}

// authenticator decides whom the socket lets in: root, the agent's own user and
// members of one group.
type authenticator struct {
	uid   uint32
	group string // members may call, "" for none
}

// actor turns a connection's credentials into an Actor.
func (a authenticator) actor(ctx context.Context) (Actor, error) {
	cred, ok := ctx.Value(credentialKey{}).(*unix.Ucred)
	if !ok {
		return Actor{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the connection carries no credential: connect over the agent's unix socket"))
	}
	name := fmt.Sprintf("unix:uid=%d,gid=%d,pid=%d", cred.Uid, cred.Gid, cred.Pid)
	if cred.Uid == 0 || cred.Uid == a.uid || a.member(cred) {
		return Actor{Role: eventpb.Role_ROLE_ADMIN, Name: name}, nil
	}
	return Actor{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("user %d may not use varve: run as root or join the group %q", cred.Uid, a.group))
}

func (a authenticator) member(cred *unix.Ucred) bool {
	if a.group == "" {
		return false
	}
	g, err := user.LookupGroup(a.group)
	if err != nil {
		return false
	}
	if g.Gid == strconv.FormatUint(uint64(cred.Gid), 10) {
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(cred.Uid), 10))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, g.Gid)
}

type actorKey struct{}

// ActorFrom is the authenticated caller of a handler.
func ActorFrom(ctx context.Context) Actor {
	a, _ := ctx.Value(actorKey{}).(Actor)
	return a
}

// authenticate wraps h so that it is reached only by authenticated callers. It
// stands before the protocol handlers, so no method can be added without it.
func (a authenticator) authenticate(h http.Handler) http.Handler {
	errors := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, err := a.actor(r.Context())
		if err != nil {
			if errors.IsSupported(r) {
				_ = errors.Write(w, r, err)
				return
			}
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), actorKey{}, actor)))
	})
}
