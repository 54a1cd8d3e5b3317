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
	// MayRestore: he may put policies and namespaces back to a snapshot's, which takes
	// more than to change one.
	MayRestore bool
}

// Proto is the actor as an event carries it.
func (a Actor) Proto() *eventpb.Actor { return &eventpb.Actor{Role: a.Role, Name: a.Name} }

// peer is who is at the other end of a connection, and whether he may call. It is
// found out once a connection: the kernel knows the credentials as of connect(2),
// and membership in a group counts from then on, as for any process.
type peer struct {
	actor Actor
	err   error // why he may not
}

type peerKey struct{}

// identify is an http.Server's ConnContext.
func (a authenticator) identify(ctx context.Context, c net.Conn) context.Context {
	var p peer
	p.actor, p.err = a.actor(peerCredentials(c))
	return context.WithValue(ctx, peerKey{}, &p)
}

// peerCredentials asks the kernel who connected; nil if c is no unix socket.
func peerCredentials(c net.Conn) *unix.Ucred {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return nil
	}
	return cred
}

// authenticator decides whom the socket lets in: root, the agent's own user and
// members of one group.
type authenticator struct {
	uid       uint32
	group     string // members may call, "" for none
	restorers string // members who may call may restore, "" for none
}

// actor turns a connection's credentials, nil for none, into an Actor.
func (a authenticator) actor(cred *unix.Ucred) (Actor, error) {
	if cred == nil {
		return Actor{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the connection carries no credential: connect over the agent's unix socket"))
	}
	name := fmt.Sprintf("unix:uid=%d,gid=%d,pid=%d", cred.Uid, cred.Gid, cred.Pid)
	owner := cred.Uid == 0 || cred.Uid == a.uid
	if owner || member(a.group, cred) {
		return Actor{Role: eventpb.Role_ROLE_ADMIN, Name: name, MayRestore: owner || member(a.restorers, cred)}, nil
	}
	return Actor{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("user %d may not use varve: run as root or join the group %q", cred.Uid, a.group))
}

func member(group string, cred *unix.Ucred) bool {
	if group == "" {
		return false
	}
	g, err := user.LookupGroup(group)
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

// errUnidentified is of a request that came over no connection of the server.
var errUnidentified = connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the request came over no connection of the agent's socket"))

// ActorFrom is the authenticated caller of a handler.
func ActorFrom(ctx context.Context) Actor {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok && p.err == nil {
		return p.actor
	}
	return Actor{}
}

// authenticate wraps h so that it is reached only by authenticated callers. It
// stands before the protocol handlers, so no method can be added without it.
func (a authenticator) authenticate(h http.Handler) http.Handler {
	errors := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := error(errUnidentified)
		if p, ok := r.Context().Value(peerKey{}).(*peer); ok {
			err = p.err
		}
		if err == nil {
			h.ServeHTTP(w, r)
			return
		}
		if errors.IsSupported(r) {
			_ = errors.Write(w, r, err)
			return
		}
		http.Error(w, err.Error(), http.StatusForbidden)
	})
}
