package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Bodies of spec, by kind, all in namespace alpha of cluster home.
func cnp(spec string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: alpha}\nspec:\n" + indent(spec)
}

func ccnp(spec string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\nspec:\n" + indent(spec)
}

func np(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: alpha}\nspec:\n" + indent(spec)
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ") + "\n"
}

// The numbers group the cases by subject: policyTypes 1, peers 2-3, label
// expressions 4, CIDR 5 and 15, ports 7-8 and 19, scope 10-12, entities 13,
// default deny 17-18, exclusions 20, layer 7 21-24.
func TestSemantics(t *testing.T) {
	const own = "ns in (alpha)"
	for _, tt := range []struct {
		name, in, want string
	}{
		{"1 no policyTypes", np("podSelector: {}\negress: []"), "subject " + own + "\nisolates ingress\n"},
		{"1 null policyTypes", np("podSelector: {}\npolicyTypes: null"), "subject " + own + "\nisolates ingress\n"},
		{"1 empty policyTypes", np("podSelector: {}\npolicyTypes: []"), "subject " + own + "\nisolates ingress\n"},
		{"1 egress rules", np("podSelector: {}\negress: [{}]"), "subject " + own + "\nisolates ingress egress\negress[0] any at all\n"},
		{"1 section not named", np("podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]\ningress: [{}]"), "subject " + own + "\nisolates ingress\ningress[0] any at all\n"},
		{"1 egress [] but named", np("podSelector: {}\npolicyTypes: [Egress]\negress: []"), "subject " + own + "\nisolates egress\n"},

		{"2 from null", np("podSelector: {}\ningress: [{from: null, ports: [{port: 80}]}]"), "subject " + own + "\nisolates ingress\ningress[0] any at 80/TCP\n"},
		{"2 from []", np("podSelector: {}\ningress: [{from: []}]"), "subject " + own + "\nisolates ingress\ningress[0] any at all\n"},
		{"2 ingress []", np("podSelector: {}\ningress: []"), "subject " + own + "\nisolates ingress\n"},

		{"3 both selectors", np("podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {app: db}}, namespaceSelector: {matchLabels: {team: red}}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] k8s:app in (db),nslabel:team in (red),cluster in (home),ns at all\n"},
		{"3 separate peers", np("podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {app: db}}}, {namespaceSelector: {}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] k8s:app in (db),cluster in (home),ns in (alpha) | cluster in (home),ns at all\n"},
		{"3 null namespaceSelector", np("podSelector: {}\ningress: [{from: [{podSelector: {}, namespaceSelector: null}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] cluster in (home),ns in (alpha) at all\n"},

		{"4 expressions", np("podSelector: {matchLabels: {k: \"\"}, matchExpressions: [{key: a, operator: NotIn, values: [z, x]}, {key: b, operator: DoesNotExist}]}"),
			"subject k8s:a notin (x,z),!k8s:b," + own + ",k8s:k in ()\nisolates ingress\n"},
		{"4 of namespaces", np("podSelector: {}\ningress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] !nslabel:team,cluster in (home),ns at all\n"},

		{"5 except", np("podSelector: {}\negress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16]}}]}]"),
			"subject " + own + "\nisolates ingress egress\negress[0] cidr:10.0.0.0/8 except 10.1.0.0/16,10.2.0.0/16 at all\n"},

		{"7 named port", np("podSelector: {}\ningress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at http/TCP dns/UDP\n"},
		{"8 ports", np("podSelector: {}\ningress: [{ports: [{protocol: UDP}, {port: 53}, {port: 8000, endPort: 8080}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at any/UDP 53/TCP 8000-8080/TCP\n"},

		{"10 {} in a CNP", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] cluster in (home),ns in (alpha) at all\n"},
		{"10 {} in a CCNP", ccnp("endpointSelector: {}\ningress: [{fromEndpoints: [{}]}]"),
			"subject {}\nisolates ingress\ningress[0] cluster in (home),ns at all\n"},
		{"10 []", cnp("endpointSelector: {}\ningress: [{fromEndpoints: []}]"),
			"subject " + own + "\nisolates ingress\ningress[0] none at all\n"},
		{"10 [] with ports", cnp("endpointSelector: {}\negress: [{toCIDR: [], toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates egress\negress[0] none at 80/TCP\n"},
		{"10 [] beside another kind", cnp("endpointSelector: {}\negress: [{toEntities: [all], toEndpoints: []}]\negressDeny: [{toCIDR: [], toCIDRSet: [{cidr: 0.0.0.0/0}]}]"),
			"subject " + own + "\nisolates egress\negress[0] none at all\negressDeny[0] none at all\n"},
		{"10 null is absent", cnp("endpointSelector: {}\ningress: [{fromEndpoints: null, toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 80/TCP\n"},
		{"10 no peer field", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: 8}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 8/ICMP\n"},

		{"11 scope moved", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": beta}}, {matchLabels: {io.kubernetes.pod.namespace: beta}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] cluster in (home),ns in (beta) | any:ns in (beta),cluster in (home) at all\n"},
		{"11 scope lifted", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {\"k8s:io.cilium.k8s.namespace.labels.team\": red}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] nslabel:team in (red),cluster in (home) at all\n"},
		{"11 a CCNP's namespace label keeps to pods", ccnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchExpressions: [{key: \"k8s:io.cilium.k8s.namespace.labels.team\", operator: DoesNotExist}]}]}]"),
			"subject {}\nisolates ingress\ningress[0] !nslabel:team,cluster in (home),ns at all\n"},
		{"11 subject overwritten", cnp("endpointSelector: {matchLabels: {\"k8s:io.kubernetes.pod.namespace\": beta, app: web}}\ningress: [{}]"),
			"subject any:app in (web)," + own + "\nisolates ingress\ningress[0] none at all\n"},

		{"12 reserved unscoped", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {\"reserved:host\": \"\"}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] reserved:host in () at all\n"},
		{"12 a dot ends no source", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {reserved.health: \"\"}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any:reserved.health in (),cluster in (home),ns in (alpha) at all\n"},
		{"12 unspec is any source but moves no scope", cnp("endpointSelector: {matchExpressions: [{key: \"unspec:app\", operator: DoesNotExist}]}\ningress: [{fromEndpoints: [{matchLabels: {\"unspec:io.kubernetes.pod.namespace\": beta}}]}]"),
			"subject !any:app,ns in (alpha)\nisolates ingress\ningress[0] any:ns in (beta),cluster in (home),ns in (alpha) at all\n"},
		{"12 cluster named", cnp("endpointSelector: {}\negress: [{toEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: away}}]}]"),
			"subject " + own + "\nisolates egress\negress[0] any:cluster in (away),ns in (alpha) at all\n"},
		{"12 init", ccnp("endpointSelector: {matchLabels: {\"reserved:init\": \"\"}}\negress: [{toEndpoints: [{}]}]"),
			"subject reserved:init in ()\nisolates egress\negress[0] cluster in (home) at all\n"},

		{"13 entities", cnp("endpointSelector: {}\ningress: [{fromEntities: [cluster, none, world-ipv6]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] entity:cluster | entity:none | entity:world-ipv6 at all\n"},

		{"15 host bits", cnp("endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.1.2.3/8, except: [10.1.2.3/32]}]}]"),
			"subject " + own + "\nisolates egress\negress[0] cidr:10.0.0.0/8 except 10.1.2.3/32 at all\n"},

		{"17 ingressDeny alone", cnp("endpointSelector: {}\ningressDeny: [{fromEntities: [world]}]"),
			"subject " + own + "\nisolates ingress\ningressDeny[0] entity:world at all\n"},
		{"17 not isolating", cnp("endpointSelector: {}\nenableDefaultDeny: {ingress: false}\ningressDeny: [{fromEntities: [world]}]"),
			"subject " + own + "\nisolates \ningressDeny[0] entity:world at all\n"},
		{"17 true without rule", cnp("endpointSelector: {}\nenableDefaultDeny: {ingress: true}\negress: [{}]"),
			"subject " + own + "\nisolates egress\negress[0] none at all\n"},
		{"18 deny-all", cnp("endpointSelector: {}\ningress: [{}]\negress: [{}]"),
			"subject " + own + "\nisolates ingress egress\ningress[0] none at all\negress[0] none at all\n"},
		{"18 empty toPorts is none named", cnp("endpointSelector: {}\ningress: [{toPorts: []}]"),
			"subject " + own + "\nisolates ingress\ningress[0] none at all\n"},

		{"19 default protocol", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"53\"}, {port: DNS-TCP, protocol: tcp}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 53/TCP 53/UDP 53/SCTP dns-tcp/TCP\n"},
		{"19 port 0", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"0\", protocol: UDP}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at any/UDP\n"},
		{"19 empty protocol", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"9\", protocol: \"\"}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 9/TCP 9/UDP 9/SCTP\n"},
		{"19 endPort", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"90\", endPort: 80, protocol: TCP}, {port: \"10\", endPort: 20, protocol: TCP}, {port: \"7\", endPort: 0, protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 90/TCP 10-20/TCP 7/TCP\n"},
		{"19 no port selects nothing", cnp("endpointSelector: {}\ningress: [{fromEntities: [all], toPorts: [{ports: []}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] entity:all at none\n"},
		{"19 unquoted number", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 80/TCP\n"},
		{"icmps", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: EchoRequest}, {type: EchoRequest, family: IPv6}, {type: 0}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 8/ICMP 128/ICMPV6 0/ICMP\n"},
		{"21 dns []", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"0\", protocol: TCP}], rules: {dns: [], http: []}}]}]"),
			"subject " + own + "\nisolates egress\negress[0] any at any/TCP\n"},
		{"21 http []", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: []}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] any at 80/TCP\n"},
		{"21 HTTP made void by the same port and peers", cnp("endpointSelector: {}\ningress: [{fromEntities: [host], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}, {fromEntities: [world, host], toPorts: [{ports: [{port: \"80\"}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] entity:host at 80/TCP\ningress[1] entity:world | entity:host at 80/TCP 80/UDP 80/SCTP\n"},
		{"21 HTTP made void by everyone", cnp("endpointSelector: {}\negress: [{toEndpoints: [{}], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}, {toPorts: [{ports: [{port: \"80\"}]}]}]"),
			"subject " + own + "\nisolates egress\negress[0] cluster in (home),ns in (alpha) at 80/TCP\negress[1] any at 80/TCP 80/UDP 80/SCTP\n"},
		{"21 HTTP made void in its own rule", cnp("endpointSelector: {}\ningress: [{fromEntities: [world], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}, {ports: [{port: \"80\", protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] entity:world at 80/TCP\n"},
		{"21 DNS beside a plain port", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"53\", protocol: UDP}], rules: {dns: [{matchName: a.io}]}}, {ports: [{port: \"53\", protocol: UDP}]}]}]"),
			"subject " + own + "\nisolates egress\negress[0] any at 53/UDP dns(a.io.) 53/UDP\n"},
		{"22 DNS", cnp("endpointSelector: {}\negress: [{toEntities: [world], toPorts: [{ports: [{port: \"53\"}, {port: dns, protocol: UDP}], rules: {dns: [{matchPattern: \"*.B.io\"}, {matchName: A.io}, {matchPattern: a.io}, {matchPattern: \"**\", matchName: c.io}]}}]}]"),
			"subject " + own + "\nisolates egress\negress[0] entity:world at 53/TCP dns(*,*.b.io.,a.io.,c.io.) 53/UDP dns(*,*.b.io.,a.io.,c.io.) 53/SCTP dns(*,*.b.io.,a.io.,c.io.) dns/UDP dns(*,*.b.io.,a.io.,c.io.)\n"},
		{"24 toFQDNs", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: API.x.io}, {matchPattern: \"***.y.io.\"}], toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]}]"),
			"subject " + own + "\nisolates egress\negress[0] fqdn:api.x.io. | fqdn:**.y.io. at 443/TCP\n"},
		{"toGroups", cnp("endpointSelector: {}\negress: [{toGroups: [{aws: {labels: {b: \"2\", a: \"1\"}, securityGroupsIds: [sg-2, sg-1], securityGroupsNames: [web], region: eu}}, {}]}]"),
			"subject " + own + "\nisolates egress\negress[0] aws:label \"a\"=\"1\",label \"b\"=\"2\",id \"sg-1\",id \"sg-2\",name \"web\",region \"eu\" at all\n"},
		{"fromGroups", cnp("endpointSelector: {}\ningress: [{fromGroups: [{aws: {securityGroupsIds: [sg-1]}}]}]"),
			"subject " + own + "\nisolates ingress\ningress[0] aws:id \"sg-1\" at all\n"},
		{"log", cnp("endpointSelector: {}\nlog: {value: web tier}\ningress: [{}]"),
			"subject " + own + "\nlog web tier\nisolates ingress\ningress[0] none at all\n"},
		{"audit mode", strings.Replace(cnp("endpointSelector: {}\ningress: [{}]"), "name: p", "name: p, annotations: {policy.varve.net/audit-mode: enabled, other.example/audit-mode: x}", 1),
			"subject " + own + "\naudit\nisolates ingress\ningress[0] none at all\n"},
		{"audit mode off", strings.Replace(np("podSelector: {}"), "name: p", "name: p, annotations: {policy.varve.net/audit-mode: Disabled}", 1),
			"subject " + own + "\nisolates ingress\n"},
		{"audit mode of a NetworkPolicy", strings.Replace(np("podSelector: {}"), "name: p", "name: p, annotations: {policy.varve.net/audit-mode: Enabled}", 1),
			"subject " + own + "\naudit\nisolates ingress\n"},
		{"log without a value", cnp("endpointSelector: {}\nlog: {}\ningress: [{}]"),
			"subject " + own + "\nisolates ingress\ningress[0] none at all\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sets, _, err := Parse("p.yaml", []byte(tt.in), Options{Cluster: "home"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, dump(t, sets[0])); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	many := strings.Repeat("{port: \"1\"}, ", 41)
	for _, tt := range []struct {
		name, in string
		class    error
		path     string // of the first problem
	}{
		{"3 ipBlock with selector", np("podSelector: {}\ningress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]"), ErrInvalid, "spec.ingress[0].from[0].ipBlock"},
		{"3 empty peer", np("podSelector: {}\ningress: [{from: [{}]}]"), ErrInvalid, "spec.ingress[0].from[0]"},
		{"5 except as large", np("podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]"), ErrInvalid, "spec.ingress[0].from[0].ipBlock.except[0]"},
		{"8 endPort with a name", np("podSelector: {}\ningress: [{ports: [{port: http, endPort: 90}]}]"), ErrInvalid, "spec.ingress[0].ports[0].endPort"},
		{"8 endPort below port", np("podSelector: {}\ningress: [{ports: [{port: 100, endPort: 90}]}]"), ErrInvalid, "spec.ingress[0].ports[0].endPort"},
		{"8 port as string", np("podSelector: {}\ningress: [{ports: [{port: \"80\"}]}]"), ErrInvalid, "spec.ingress[0].ports[0].port"},
		{"8 port name in upper case", np("podSelector: {}\ningress: [{ports: [{port: HTTP}]}]"), ErrInvalid, "spec.ingress[0].ports[0].port"},
		{"1 three policy types", np("podSelector: {}\npolicyTypes: [Ingress, Ingress, Egress]"), ErrInvalid, "spec.policyTypes"},
		{"8 endPort without port", np("podSelector: {}\negress: [{ports: [{endPort: 90}]}]"), ErrInvalid, "spec.egress[0].ports[0].endPort"},
		{"8 port 0", np("podSelector: {}\negress: [{ports: [{port: 0}]}]"), ErrInvalid, "spec.egress[0].ports[0].port"},
		{"8 protocol in lower case", np("podSelector: {}\negress: [{ports: [{protocol: tcp}]}]"), ErrInvalid, "spec.egress[0].ports[0].protocol"},
		{"1 unknown policy type", np("podSelector: {}\npolicyTypes: [ingress]"), ErrInvalid, "spec.policyTypes[0]"},
		{"np misplaced to", np("podSelector: {}\ningress: [{to: []}]"), ErrUnsupported, "spec.ingress[0].to"},

		{"13 unknown entity", cnp("endpointSelector: {}\ningress: [{fromEntities: [World]}]"), ErrInvalid, "spec.ingress[0].fromEntities[0]"},
		{"15 bare address", cnp("endpointSelector: {}\negress: [{toCIDR: [10.0.0.1]}]"), ErrInvalid, "spec.egress[0].toCIDR[0]"},
		{"15 except outside", cnp("endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.0.0.0/16, except: [10.1.0.0/24]}]}]"), ErrInvalid, "spec.egress[0].toCIDRSet[0].except[0]"},
		{"15 except wider", cnp("endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.0.0.0/16, except: [10.0.0.0/8]}]}]"), ErrInvalid, "spec.egress[0].toCIDRSet[0].except[0]"},
		{"15 other family", cnp("endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.0.0.0/16, except: [\"::/0\"]}]}]"), ErrInvalid, "spec.egress[0].toCIDRSet[0].except[0]"},
		{"15 mapped", cnp("endpointSelector: {}\negress: [{toCIDR: [\"::ffff:10.0.0.0/104\"]}]"), ErrInvalid, "spec.egress[0].toCIDR[0]"},

		{"18 no section", cnp("endpointSelector: {}"), ErrInvalid, "spec"},
		{"18 empty sections", cnp("endpointSelector: {}\ningress: []\negressDeny: []"), ErrInvalid, "spec"},
		{"18 null egress", cnp("endpointSelector: {}\negress:"), ErrInvalid, "spec"},
		{"a null rule", cnp("endpointSelector: {}\negress: [null]"), ErrInvalid, "spec.egress[0]"},
		{"a null selector", cnp("endpointSelector: {}\negress: [{toEndpoints: [~]}]"), ErrInvalid, "spec.egress[0].toEndpoints[0]"},
		{"no selector", cnp("ingress: [{}]"), ErrInvalid, "spec.endpointSelector"},

		{"19 41 ports", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [" + many + "]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports"},
		{"19 no port", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{protocol: TCP}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].port"},
		{"19 bad port", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"65536\"}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].port"},
		{"19 octal", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: 010}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].port"},
		{"19 range from 0", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"0\", endPort: 9}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].ports[0].endPort"},
		{"19 bad protocol", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"1\", protocol: GRE}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 VRRP", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{protocol: VRRP}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"icmp type", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: PacketTooBig}]}]}]"), ErrInvalid, "spec.ingress[0].icmps[0].fields[0].type"},

		{"20 two peer kinds", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{}], fromEntities: [world]}]"), ErrInvalid, "spec.ingress[0]"},
		{"20 icmps with toPorts", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: \"1\"}]}]}]"), ErrInvalid, "spec.ingress[0].icmps"},
		{"20 node selector in a CNP", cnp("nodeSelector: {}\ningress: [{}]"), ErrInvalid, ""},
		{"node selector", ccnp("nodeSelector: {}\ningress: [{}]"), ErrUnsupported, "spec.nodeSelector"},
		{"20 HTTP on UDP", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: UDP}], rules: {http: [{}]}}]}]"), ErrInvalid, ""},
		{"20 ingress DNS", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"53\"}], rules: {dns: [{matchPattern: \"*\"}]}}]}]"), ErrInvalid, ""},
		{"20 HTTP with port 0", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"0\", protocol: TCP}], rules: {http: [{}]}}]}]"), ErrInvalid, ""},
		{"19 ICMP is no protocol of ports", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"8\", protocol: ICMP}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 icmpv6 is no protocol of ports", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"0\", protocol: icmpv6}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 unknown protocol", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"1\", protocol: QUIC}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 GRE", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"0\", protocol: GRE}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 VRRP with a port", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"53\", protocol: VRRP}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].protocol"},
		{"19 a name with endPort", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: http, endPort: 90}]}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].ports[0].port"},
		{"icmp type with leading zeros", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: \"00\"}]}]}]"), ErrInvalid, "spec.ingress[0].icmps[0].fields[0].type"},
		{"icmp type too large", cnp("endpointSelector: {}\ningress: [{icmps: [{fields: [{type: 256}]}]}]"), ErrInvalid, "spec.ingress[0].icmps[0].fields[0].type"},
		{"20 serverNames with HTTP", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"443\", protocol: TCP}], serverNames: [a], rules: {http: [{}]}}]}]"), ErrInvalid, ""},
		{"serverNames with HTTP and TLS", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"443\", protocol: TCP}], terminatingTLS: {}, serverNames: [a], rules: {http: [{}]}}]}]"), ErrUnsupported, ""},
		{"an empty server name", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"443\", protocol: TCP}], serverNames: [\"\"]}]}]"), ErrInvalid, ""},
		{"serverNames", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"443\", protocol: TCP}], serverNames: [a], rules: {http: []}}]}]"), ErrUnsupported, "spec.egress[0].toPorts[0].serverNames"},
		{"two kinds of rules above layer 4", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}], dns: [{matchPattern: x}]}}]}]"), ErrInvalid, ""},
		{"DNS rules without a port", cnp("endpointSelector: {}\negress: [{toPorts: [{rules: {dns: [{matchPattern: x}]}}]}]"), ErrInvalid, ""},
		{"DNS rules for a range", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"53\", endPort: 60}], rules: {dns: [{matchPattern: x}]}}]}]"), ErrInvalid, ""},
		{"21 HTTP", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].rules.http"},
		{"21 HTTP beside a narrower rule", cnp("endpointSelector: {}\ningress: [{fromEntities: [all], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: \"80\"}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].rules.http"},
		{"21 HTTP beside a wider range", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}, {toPorts: [{ports: [{port: \"80\", endPort: 90}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].rules.http"},
		{"21 HTTP beside the other direction", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}]\negress: [{toPorts: [{ports: [{port: \"80\"}]}]}]"), ErrUnsupported, "spec.ingress[0].toPorts[0].rules.http"},
		{"21 HTTP path", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{path: \"/(\"}]}}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].rules.http[0].path"},
		{"21 HTTP header", cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{headerMatches: [{value: x}]}]}}]}]"), ErrInvalid, "spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].name"},
		{"22 characters of a name", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: \"*.x.io\"}]}]"), ErrInvalid, "spec.egress[0].toFQDNs[0].matchName"},
		{"22 characters of a pattern", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchPattern: a+b.io}]}]"), ErrInvalid, "spec.egress[0].toFQDNs[0].matchPattern"},
		{"22 an empty label", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchPattern: foo..io}]}]"), ErrInvalid, "spec.egress[0].toFQDNs[0].matchPattern"},
		{"22 no name", cnp("endpointSelector: {}\negress: [{toFQDNs: [{}]}]"), ErrInvalid, "spec.egress[0].toFQDNs[0]"},
		{"22 an empty name", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"53\"}], rules: {dns: [{matchName: \"\"}]}}]}]"), ErrInvalid, "spec.egress[0].toPorts[0].rules.dns[0].matchName"},
		{"22 name and pattern", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: a.io, matchPattern: b.io}]}]"), ErrInvalid, "spec.egress[0].toFQDNs[0]"},
		{"22 misspelt", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchNames: a.io}]}]"), ErrInvalid, ""},
		{"24 an empty list of names", cnp("endpointSelector: {}\negress: [{toFQDNs: [], toPorts: [{ports: [{port: \"1\"}]}]}]"), ErrUnsupported, "spec.egress[0].toFQDNs"},
		{"24 names beside ranges", cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: a.io}], toCIDR: [10.0.0.0/8]}]"), ErrInvalid, "spec.egress[0]"},
		{"24 names in a deny", cnp("endpointSelector: {}\negressDeny: [{toFQDNs: [{matchName: a.io}]}]"), ErrUnsupported, "spec.egressDeny[0].toFQDNs"},
		{"24 names on ingress", cnp("endpointSelector: {}\ningress: [{fromFQDNs: [{matchName: a.io}]}]"), ErrUnsupported, "spec.ingress[0].fromFQDNs"},
		{"DNS rules with port 0", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"0\", protocol: UDP}], rules: {dns: [{matchPattern: x}]}}]}]"), ErrInvalid, "spec.egress[0].toPorts[0].rules.dns"},
		{"Kafka", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"1\", protocol: TCP}], rules: {kafka: [{topic: t}]}}]}]"), ErrUnsupported, "spec.egress[0].toPorts[0].rules.kafka"},
		{"another protocol", cnp("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"1\", protocol: TCP}], rules: {l7proto: r2d2, l7: [{cmd: X}]}}]}]"), ErrUnsupported, "spec.egress[0].toPorts[0].rules.l7proto"},
		{"21 unknown field", cnp("endpointSelector: {}\negress: [{toEndpoint: [{}]}]"), ErrUnsupported, "spec.egress[0].toEndpoint"},
		{"21 unknown null field", cnp("endpointSelector: {}\negress: [{toEndpoint: ~}]"), ErrUnsupported, "spec.egress[0].toEndpoint"},
		{"toServices", cnp("endpointSelector: {}\negress: [{toServices: []}]"), ErrUnsupported, "spec.egress[0].toServices"},
		{"toGroups in a deny", cnp("endpointSelector: {}\negressDeny: [{toGroups: [{aws: {region: eu}}]}]"), ErrUnsupported, "spec.egressDeny[0].toGroups"},
		{"an empty list of groups", cnp("endpointSelector: {}\negress: [{toGroups: []}]"), ErrUnsupported, "spec.egress[0].toGroups"},
		{"groups beside ranges", cnp("endpointSelector: {}\negress: [{toGroups: [{aws: {region: eu}}], toCIDR: [10.0.0.0/8]}]"), ErrInvalid, "spec.egress[0]"},
		{"an empty security group", cnp("endpointSelector: {}\negress: [{toGroups: [{aws: {securityGroupsIds: [\"\"]}}]}]"), ErrInvalid, "spec.egress[0].toGroups[0].aws"},
		{"another cloud", cnp("endpointSelector: {}\negress: [{toGroups: [{gcp: {}}]}]"), ErrUnsupported, "spec.egress[0].toGroups[0].gcp"},
		{"toRequires", cnp("endpointSelector: {}\negress: [{toRequires: [{}]}]"), ErrUnsupported, "spec.egress[0].toRequires"},
		{"fromNodes", cnp("endpointSelector: {}\ningress: [{fromNodes: [{}]}]"), ErrUnsupported, "spec.ingress[0].fromNodes"},
		{"authentication", cnp("endpointSelector: {}\ningress: [{authentication: {mode: required}}]"), ErrUnsupported, "spec.ingress[0].authentication"},
		{"no audit mode", strings.Replace(cnp("endpointSelector: {}\ningress: [{}]"), "name: p", "name: p, annotations: {policy.varve.net/audit-mode: \"yes\"}", 1), ErrInvalid, "metadata.annotations.policy.varve.net/audit-mode"},
		{"a misspelt annotation", strings.Replace(cnp("endpointSelector: {}\ningress: [{}]"), "name: p", "name: p, annotations: {policy.varve.net/auditmode: Enabled}", 1), ErrUnsupported, "metadata.annotations.policy.varve.net/auditmode"},
		{"a long log value", cnp("endpointSelector: {}\nlog: {value: a0123456789012345678901234567890123456789}\ningress: [{}]"), ErrInvalid, "spec.log.value"},
		{"a log value that does not print", cnp("endpointSelector: {}\nlog: {value: \"a\\tb\"}\ningress: [{}]"), ErrInvalid, "spec.log.value"},
		{"a log value that is no mapping", cnp("endpointSelector: {}\nlog: x\ningress: [{}]"), ErrInvalid, "spec.log"},
		{"deny with rules", cnp("endpointSelector: {}\ningressDeny: [{toPorts: [{rules: {http: []}}]}]"), ErrUnsupported, "spec.ingressDeny[0].toPorts[0].rules"},
		{"12 $ for reserved:", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {$host: \"\"}}]}]"), ErrInvalid, "spec.ingress[0].fromEndpoints[0].matchLabels.$host"},
		{"source with a dash", cnp("endpointSelector: {matchLabels: {\"k8s-x:a\": b}}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchLabels.k8s-x:a"},
		{"source in upper case", cnp("endpointSelector: {matchExpressions: [{key: \"K8S:a\", operator: DoesNotExist}]}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchExpressions[0]"},
		{"source cidr", cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {\"cidr:10.0.0.0/8\": \"\"}}]}]"), ErrUnsupported, "spec.ingress[0].fromEndpoints[0].matchLabels.cidr:10.0.0.0/8"},

		{"value a boolean", cnp("endpointSelector: {matchLabels: {a: true}}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchLabels.a"},
		{"value a YAML 1.1 boolean", cnp("endpointSelector: {matchLabels: {a: yes}}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchLabels.a"},
		{"label twice", cnp("endpointSelector: {matchLabels: {a: x, \"any:a\": z}}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchLabels.any:a"},
		{"key twice", cnp("endpointSelector: {}\nendpointSelector: {}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector"},
		{"merge key", cnp("endpointSelector: {<<: {}}\ningress: [{}]"), ErrUnsupported, "spec.endpointSelector"},
		{"In without values", cnp("endpointSelector: {matchExpressions: [{key: a, operator: In}]}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchExpressions[0].values"},
		{"Exists with values", cnp("endpointSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}\ningress: [{}]"), ErrInvalid, "spec.endpointSelector.matchExpressions[0].values"},
		{"a CCNP with a namespace", strings.Replace(ccnp("endpointSelector: {}\ningress: [{}]"), "name: p", "name: p, namespace: x", 1), ErrInvalid, "metadata.namespace"},
		{"other version", strings.Replace(cnp("endpointSelector: {}\ningress: [{}]"), "v2", "v3", 1), ErrUnsupported, "apiVersion"},
		{"other kind", strings.Replace(np("podSelector: {}"), "NetworkPolicy", "Ingress", 1), ErrUnsupported, "kind"},
		{"no name", strings.Replace(np("podSelector: {}"), "name: p, ", "", 1), ErrInvalid, "metadata.name"},
		{"empty", "# nothing\n", ErrInvalid, ""},
		{"not YAML", "a: [", ErrInvalid, ""},
		{"a list", "- a", ErrInvalid, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sets, _, err := Parse("p.yaml", []byte(tt.in), Options{})
			if sets != nil || !errors.Is(err, tt.class) {
				t.Fatalf("%v, %v", sets, err)
			}
			if tt.class == ErrUnsupported && errors.Is(err, ErrInvalid) {
				t.Errorf("legal, but called invalid: %v", err)
			}
			fields := FieldErrors(err)
			if tt.path != "" && fields[0].Path != tt.path {
				t.Errorf("path %q, want %q", fields[0].Path, tt.path)
			}
			if fields[0].Source != "p.yaml" || fields[0].Problem == "" {
				t.Errorf("%+v", fields[0])
			}
		})
	}
}
