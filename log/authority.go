package log

import (
	"fmt"

	"github.com/varve-net/varve/log/eventpb"
)

// Authorize decides by (role, kind, origin) whether an event may be appended:
//
//   - an admin appends policies and namespaces, and never what a node alone can
//     know (endpoints, nodes);
//   - a node appends the facts of its own node and nothing else;
//   - a restorer puts policies and namespaces back as a whole, and appends nothing
//     else;
//   - a reader, or a role that is not known, appends nothing.
//
// Actor and origin are as the server that authenticated the client set them. An
// update or a delete of an endpoint does not name the owner, which only the
// state knows: package fsm checks it. The error is ErrForbidden, otherwise as of
// KindOf.
func Authorize(e *eventpb.Event) error {
	k, err := KindOf(e)
	if err != nil {
		return err
	}
	info := k.info()
	role := e.GetActor().GetRole()
	if role != info.role {
		return fmt.Errorf("%w: %s may not append %s, only %s may", ErrForbidden, roleName(role), info.name, roleName(info.role))
	}
	if role != eventpb.Role_ROLE_NODE {
		return nil
	}
	node := e.GetOrigin().GetNode()
	if node == "" {
		return fmt.Errorf("%w: %s: origin.node: is empty, so no node can own the fact", ErrForbidden, info.name)
	}
	if info.owner == nil {
		return nil
	}
	if owner := info.owner(e); owner != node {
		return fmt.Errorf("%w: %s: node %.80q may not state a fact of node %.80q", ErrForbidden, info.name, node, owner)
	}
	return nil
}

func roleName(r eventpb.Role) string {
	switch r {
	case eventpb.Role_ROLE_ADMIN:
		return "admin"
	case eventpb.Role_ROLE_NODE:
		return "node"
	case eventpb.Role_ROLE_READER:
		return "reader"
	case eventpb.Role_ROLE_RESTORER:
		return "restorer"
	case eventpb.Role_ROLE_UNSPECIFIED:
		return "an actor without role"
	default:
		return fmt.Sprintf("role %d", int32(r))
	}
}
