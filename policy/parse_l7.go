package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	l7Schema = schema{
		fields: []string{"dns", "http"},
		unsupported: map[string]refusal{
			"kafka":   {"Kafka requests are not looked at", removeRules},
			"l7":      {"requests inside a connection are not looked at", removeRules},
			"l7proto": {"requests inside a connection are not looked at", removeRules},
		},
	}
	fqdnSchema   = schema{fields: []string{"matchName", "matchPattern"}}
	httpSchema   = schema{fields: []string{"path", "method", "host", "headers", "headerMatches"}}
	headerSchema = schema{fields: []string{"mismatch", "name", "secret", "value"}}
	secretSchema = schema{fields: []string{"namespace", "name"}}
)

const removeRules = "remove rules, which allows whatever the ports allow"

// l7 is what an entry of toPorts says about what is inside a connection.
type l7 struct {
	dns  *eventpb.DnsRules // nil: nothing about DNS
	http *httpRules        // nil: nothing about HTTP
}

// httpRules is where a list of HTTP rules stands that is not empty.
type httpRules struct {
	line int
	path string
}

// portUse is a port of an allow rule, as an entry of toPorts names it.
type portUse struct {
	rule *eventpb.Rule
	port *eventpb.Port
	http *httpRules
}

// l7Rules reads rules about what is inside a connection, and refuses as invalid
// what Cilium refuses too. None at all, or an empty list, is no restriction.
func (w *walker) l7Rules(v *value, path string, section Section, ports []*eventpb.Port) (out l7) {
	if _, ok := w.object(v, path, l7Schema); !ok {
		return out
	}
	kinds := 0
	for _, f := range v.fields {
		p := join(path, f.key)
		if f.key == "l7proto" || f.val.kind == kindNull || f.val.kind == kindList && len(f.val.items) == 0 {
			continue
		}
		if kinds++; kinds > 1 {
			w.invalid(f.line, path, "rules of two protocols", "write one entry of toPorts for each")
		}
		switch {
		case f.key == "dns" && section == SectionIngress:
			w.invalid(f.line, p, "DNS rules are for egress only", "write them in an egress rule of who asks")
		case f.key == "dns" && len(ports) == 0:
			w.invalid(f.line, p, "DNS rules need a port", `name it under ports: port "53", protocol ANY`)
		}
		w.l7Ports(f, p, ports)
		switch f.key {
		case "dns":
			out.dns = w.dnsRules(f.val, p)
		case "http":
			out.http = &httpRules{f.line, p}
			for i, item := range w.list(f.val, p, maxRules) {
				w.httpRule(item, index(p, i))
			}
		}
	}
	return out
}

// l7Ports refuses ports that rules of a protocol cannot stand beside.
func (w *walker) l7Ports(f field, path string, ports []*eventpb.Port) {
	for _, port := range ports {
		switch {
		case port.Name == "" && port.First == 0 && port.Last == 65535:
			w.invalid(f.line, path, "rules above layer 4 need a port other than 0", "name the port")
			return
		case f.key != "dns" && port.Protocol != uint32(ProtoTCP):
			w.invalid(f.line, path, f.key+" rules need protocol TCP", "write protocol: TCP at each port")
			return
		case f.key == "dns" && port.Last > port.First:
			w.invalid(f.line, path, "DNS rules take no range of ports", "write an entry for each port")
			return
		}
	}
}

// dnsRules is the names that may be asked for, in canonical order.
func (w *walker) dnsRules(v *value, path string) *eventpb.DnsRules {
	var names []FQDNSelector
	for i, item := range w.list(v, path, maxNames) {
		names = append(names, w.fqdns(item, index(path, i), true)...)
	}
	slices.SortFunc(names, FQDNSelector.Compare)
	out := &eventpb.DnsRules{}
	for _, n := range slices.Compact(names) {
		out.Names = append(out.Names, n.PB())
	}
	return out
}

// dnsKey tells DNS rules apart; "" is none.
func dnsKey(rules *eventpb.DnsRules) string {
	if rules == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString("dns")
	for _, n := range rules.Names {
		b.WriteString(" " + n.MatchName + n.MatchPattern)
	}
	return b.String()
}

// fqdnPeer reads an item of toFQDNs.
func (w *walker) fqdnPeer(v *value, path string) *eventpb.Peer {
	names := w.fqdns(v, path, false)
	if len(names) != 1 {
		return nil
	}
	return &eventpb.Peer{Peer: &eventpb.Peer_Fqdn{Fqdn: names[0].PB()}}
}

// fqdns reads a matchName or matchPattern. If both may be given, either is enough.
func (w *walker) fqdns(v *value, path string, both bool) []FQDNSelector {
	o, ok := w.object(v, path, fqdnSchema)
	if !ok {
		return nil
	}
	var out []FQDNSelector
	given := 0
	for _, field := range fqdnSchema.fields {
		text, p := o.get(field)
		if text == nil {
			continue
		}
		given++
		s, ok := w.str(text, p)
		if !ok {
			continue
		}
		name, pattern := s, ""
		if field == "matchPattern" {
			name, pattern = "", s
		}
		selector, err := ParseFQDN(name, pattern)
		switch {
		case s == "":
			w.invalid(text.line, p, "empty", "give a name like api.example.com")
		case err != nil:
			w.invalid(text.line, p, withoutClass(err), "write it like api.example.com, or as a matchPattern like *.example.com")
		case !CheckFQDNSchema(name, pattern):
			w.invalid(text.line, p, fmt.Sprintf("%q has an empty label", s), "write it like api.example.com")
		default:
			out = append(out, selector)
		}
	}
	switch {
	case given == 0:
		w.invalid(v.line, path, "names nothing", "give matchName or matchPattern")
	case given > 1 && !both:
		w.invalid(v.line, path, "matchName and matchPattern exclude each other", "write two items")
	case given > 1:
		w.warn(v.line, path, "a name that matchName or matchPattern matches is allowed: either is enough", "write an entry for each, or keep one of them")
	}
	return out
}

// withoutClass is err without its class.
func withoutClass(err error) string {
	return strings.Replace(err.Error(), ErrInvalid.Error()+": ", "", 1)
}

// httpRule checks what Cilium checks of an HTTP rule.
func (w *walker) httpRule(v *value, path string) {
	o, ok := w.object(v, path, httpSchema)
	if !ok {
		return
	}
	for _, name := range []string{"path", "method", "host"} {
		f, p := o.get(name)
		if f == nil {
			continue
		}
		if s, ok := w.str(f, p); ok && name != "host" {
			if _, err := regexp.Compile(s); err != nil {
				w.invalid(f.line, p, strings.TrimPrefix(err.Error(), "error parsing regexp: "), "escape what is meant as it stands")
			}
		}
	}
	if headers, p := o.get("headers"); headers != nil {
		for i, h := range w.list(headers, p, maxValues) {
			w.str(h, index(p, i))
		}
	}
	if matches, p := o.get("headerMatches"); matches != nil {
		for i, m := range w.list(matches, p, maxValues) {
			w.headerMatch(m, index(p, i))
		}
	}
}

func (w *walker) headerMatch(v *value, path string) {
	o, ok := w.object(v, path, headerSchema)
	if !ok {
		return
	}
	w.required(o, "name")
	if m, p := o.get("mismatch"); m != nil {
		if s, ok := w.str(m, p); ok && !slices.Contains([]string{"", "LOG", "ADD", "DELETE", "REPLACE"}, s) {
			w.invalid(m.line, p, fmt.Sprintf("unknown action %q", s), "use LOG, ADD, DELETE or REPLACE")
		}
	}
	if s, p := o.get("secret"); s != nil {
		if secret, ok := w.object(s, p, secretSchema); ok {
			w.required(secret, "name")
		}
	}
}

// voidHTTP refuses the HTTP rules of a spec's allow rules that would restrict
// something. They do not if, for each port and peer, a rule of the same direction
// allows that very port to that peer whatever is inside.
func (w *walker) voidHTTP(ports []portUse) {
	refused := make(map[*httpRules]bool)
	for _, use := range ports {
		if use.http == nil || refused[use.http] || allowedPlain(use, ports) {
			continue
		}
		refused[use.http] = true
		w.unsupported(use.http.line, use.http.path,
			"field http is not supported: requests inside a connection are not looked at, so these rules would not restrict", removeRules)
	}
}

func allowedPlain(use portUse, ports []portUse) bool {
	plain := func(peer *eventpb.Peer) bool {
		return slices.ContainsFunc(ports, func(o portUse) bool {
			return o.http == nil && o.port.Dns == nil && samePort(o.port, use.port) && takes(o.rule, peer)
		})
	}
	if use.rule.AnyPeer {
		return plain(&eventpb.Peer{Peer: &eventpb.Peer_Entity{Entity: string(EntityAll)}})
	}
	return !slices.ContainsFunc(use.rule.Peers, func(p *eventpb.Peer) bool { return !plain(p) })
}

func samePort(a, b *eventpb.Port) bool {
	return a.Protocol == b.Protocol && a.First == b.First && a.Last == b.Last && a.Name == b.Name
}

// takes tells whether a rule is for everyone or names the peer.
func takes(r *eventpb.Rule, peer *eventpb.Peer) bool {
	return r.AnyPeer || slices.ContainsFunc(r.Peers, func(p *eventpb.Peer) bool {
		return p.GetEntity() == string(EntityAll) || proto.Equal(p, peer)
	})
}

// serverNames refuses, as Cilium does, an empty name, and names beside rules that
// only a terminated TLS connection shows.
func (w *walker) serverNames(o object, rules *value) {
	names, p := o.get("serverNames")
	if names == nil {
		return
	}
	for i, n := range names.items {
		if n.kind == kindString && n.text == "" {
			w.invalid(n.line, index(p, i), "empty", "remove it")
		}
	}
	if tls, _ := o.get("terminatingTLS"); tls != nil || rules == nil || len(names.items) == 0 {
		return
	}
	for _, f := range rules.fields {
		if len(f.val.items) > 0 {
			w.invalid(names.line, p, "server names beside "+f.key+" rules need terminatingTLS", "")
		}
	}
}
