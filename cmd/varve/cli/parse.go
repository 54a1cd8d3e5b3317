package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

const defaultNamespace = "default"

// parseLabels reads "key=value" terms.
func parseLabels(flag string, terms []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, t := range terms {
		key, value, ok := strings.Cut(t, "=")
		if !ok || key == "" {
			return nil, usagef("%s: %q is not key=value", flag, t)
		}
		if old, ok := labels[key]; ok && old != value {
			return nil, usagef("%s: %q is given twice, as %q and %q", flag, key, old, value)
		}
		labels[key] = value
	}
	return labels, nil
}

// parseLabelEdits reads "key=value" to set and "key-" to remove.
func parseLabelEdits(terms []string) (set map[string]string, remove []string, err error) {
	var sets []string
	for _, t := range terms {
		if key, ok := strings.CutSuffix(t, "-"); ok && !strings.Contains(t, "=") {
			if key == "" {
				return nil, nil, usagef("label %q: has no key; write key- to remove key", t)
			}
			remove = append(remove, key)
			continue
		}
		sets = append(sets, t)
	}
	set, err = parseLabels("label", sets)
	if err != nil {
		return nil, nil, err
	}
	for _, key := range remove {
		if _, ok := set[key]; ok {
			return nil, nil, usagef("label %q: both set and removed", key)
		}
	}
	return set, remove, nil
}

// parsePort reads "name=number[/protocol]".
func parsePort(s string) (*varvev1.NamedPort, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return nil, usagef("--port: %q is not name=number/protocol, e.g. http=8080/tcp", s)
	}
	digits, proto, hasProto := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 {
		return nil, usagef("--port: %q: %q is no port; give 1 to 65535", s, digits)
	}
	if !hasProto {
		proto = "tcp"
	}
	switch proto = strings.ToUpper(proto); proto {
	case "TCP", "UDP", "SCTP":
	default:
		return nil, usagef("--port: %q: protocol %q is none of tcp, udp, sctp", s, proto)
	}
	return &varvev1.NamedPort{Name: name, Protocol: proto, Port: uint32(n)}, nil
}

// named is a namespace and a name in it.
type named struct{ namespace, name string }

func (n named) String() string { return n.namespace + "/" + n.name }

// parseNamed reads NAME or NAMESPACE/NAME; the flag -n stands in for what the
// argument does not say.
func parseNamed(cmd *cobra.Command, what, arg string) (named, error) {
	flag := cmd.Flags().Lookup("namespace")
	ns, name, ok := strings.Cut(arg, "/")
	if !ok {
		ns, name = flag.Value.String(), arg
	} else if flag.Changed && flag.Value.String() != ns {
		return named{}, usagef("%s %q: names another namespace than --namespace %s", what, arg, flag.Value)
	}
	if ns == "" {
		ns = defaultNamespace
	}
	if name == "" || strings.Contains(name, "/") {
		return named{}, usagef("%s %q: is not NAME or NAMESPACE/NAME", what, arg)
	}
	return named{ns, name}, nil
}

// withNamespace gives a command the flag -n; without a value it is fallback.
func (a *app) withNamespace(cmd *cobra.Command, fallback string) *cobra.Command {
	usage := "namespace"
	if fallback == "" {
		usage = "only this namespace"
	}
	cmd.Flags().StringP("namespace", "n", fallback, usage)
	_ = cmd.RegisterFlagCompletionFunc("namespace", a.completeNamespaces)
	return cmd
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if strings.HasSuffix(one, "y") {
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(one, "y"))
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// addWriteFlags are the flags of every write that is one event.
func addWriteFlags(flags *pflag.FlagSet, requestID *string, expected *uint64) {
	flags.StringVar(requestID, "request-id", "", "idempotency key: a retry with the same key applies once")
	flags.Uint64Var(expected, "expected-revision", 0, "refuse unless this is its revision now; 0: it must not exist")
}

// eachOf does all of it, and joins what went wrong.
func eachOf[T any](items []T, do func(T) error) error {
	var errs []error
	for _, item := range items {
		if err := do(item); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
