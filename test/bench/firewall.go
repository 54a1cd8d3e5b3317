package main

import (
	"fmt"
	"strings"
)

// The peers' rules are shaped as Calico's for two workloads under nine rules each
// way and kube-proxy's for a number of services: the same hooks, the same marks,
// the same order of chains.

// member is the i-th of the addresses that a policy of the peers selects.
func member(i int) string { return fmt.Sprintf("10.%d.%d.%d", 1+i%5, i/250, i%250) }

func serviceIP(i int) string { return fmt.Sprintf("10.96.%d.%d", i/250, i%250) }

const members = 1000

func ipsetScript() string {
	var b strings.Builder
	b.WriteString("\nip netns exec $N ipset restore -exist <<'SETS'\ncreate cali40s hash:net family inet maxelem 1048576\n")
	for i := 1; i <= members; i++ {
		fmt.Fprintf(&b, "add cali40s %s\n", member(i))
	}
	fmt.Fprintf(&b, "add cali40s %s\nadd cali40s %s\nSETS\n", addrA, addrB)
	return b.String()
}

const iptablesHead = `*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:cali-PREROUTING -
:cali-rpf-skip -
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i v+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -j cali-rpf-skip
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:POSTROUTING ACCEPT
:cali-PREROUTING -
:cali-POSTROUTING -
-A PREROUTING -j cali-PREROUTING
-A POSTROUTING -j cali-POSTROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-POSTROUTING -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-POSTROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-POSTROUTING -m conntrack --ctstate DNAT -j RETURN
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:cali-FORWARD -
:cali-from-hep-forward -
:cali-from-wl-dispatch -
:cali-to-wl-dispatch -
:cali-fw-va -
:cali-fw-vb -
:cali-tw-va -
:cali-tw-vb -
:cali-pi-pol -
:cali-po-pol -
:KUBE-FORWARD -
:KUBE-SERVICES -
:KUBE-EXTERNAL-SERVICES -
:KUBE-PROXY-FIREWALL -
-A FORWARD -j cali-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i v+ -j cali-from-wl-dispatch
-A cali-FORWARD -o v+ -j cali-to-wl-dispatch
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-from-wl-dispatch -i va -g cali-fw-va
-A cali-from-wl-dispatch -i vb -g cali-fw-vb
-A cali-from-wl-dispatch -j DROP
-A cali-to-wl-dispatch -o va -g cali-tw-va
-A cali-to-wl-dispatch -o vb -g cali-tw-vb
-A cali-to-wl-dispatch -j DROP
`

const iptablesWorkload = `-A cali-fw-IF -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-fw-IF -m conntrack --ctstate INVALID -j DROP
-A cali-fw-IF -j MARK --set-xmark 0x0/0x10000
-A cali-fw-IF -p udp -m multiport --dports 4789 -j DROP
-A cali-fw-IF -p ipencap -j DROP
-A cali-fw-IF -j cali-po-pol
-A cali-fw-IF -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-fw-IF -j DROP
-A cali-tw-IF -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-IF -m conntrack --ctstate INVALID -j DROP
-A cali-tw-IF -j MARK --set-xmark 0x0/0x10000
-A cali-tw-IF -j cali-pi-pol
-A cali-tw-IF -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw-IF -j DROP
`

const iptablesNAT = `-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:KUBE-SERVICES -
:KUBE-POSTROUTING -
:KUBE-MARK-MASQ -
:cali-POSTROUTING -
`

const iptablesTail = `-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j cali-POSTROUTING
-A POSTROUTING -j KUBE-POSTROUTING
-A cali-POSTROUTING -m set --match-set cali40s src -m set ! --match-set cali40s dst -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
`

// policyRules is how many rules with other ports stand before the one that allows.
const policyRules = 8

func iptablesRules(services int) string {
	var b strings.Builder
	b.WriteString(iptablesHead)
	for _, link := range []string{"va", "vb"} {
		b.WriteString(strings.ReplaceAll(iptablesWorkload, "IF", link))
	}
	for _, d := range [][2]string{{"pi", "src"}, {"po", "dst"}} {
		for i := 1; i <= policyRules; i++ {
			fmt.Fprintf(&b, "-A cali-%s-pol -p tcp -m multiport --dports %d -m set --match-set cali40s %s -j MARK --set-xmark 0x10000/0x10000\n", d[0], 20000+i, d[1])
		}
		fmt.Fprintf(&b, "-A cali-%s-pol -m set --match-set cali40s %s -j MARK --set-xmark 0x10000/0x10000\n", d[0], d[1])
		fmt.Fprintf(&b, "-A cali-%s-pol -m mark --mark 0x10000/0x10000 -j RETURN\n", d[0])
	}
	b.WriteString(iptablesNAT)
	for i := 1; i <= services; i++ {
		fmt.Fprintf(&b, ":KUBE-SVC-%d -\n:KUBE-SEP-%d -\n", i, i)
	}
	b.WriteString(iptablesTail)
	for i := 1; i <= services; i++ {
		fmt.Fprintf(&b, "-A KUBE-SERVICES -d %s/32 -p tcp -m comment --comment \"ns/svc-%d:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-%d\n", serviceIP(i), i, i)
		fmt.Fprintf(&b, "-A KUBE-SVC-%d -m comment --comment \"ns/svc-%d -> %s:%d\" -j KUBE-SEP-%d\n", i, i, addrB, trafficPort, i)
		fmt.Fprintf(&b, "-A KUBE-SEP-%d -s %s/32 -j KUBE-MARK-MASQ\n", i, addrB)
		fmt.Fprintf(&b, "-A KUBE-SEP-%d -p tcp -m tcp -j DNAT --to-destination %s:%d\n", i, addrB, trafficPort)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func nftablesRules(services int) string {
	var b strings.Builder
	b.WriteString("table ip kube-proxy {\n chain mark-masq { meta mark set meta mark or 0x4000; }\n")
	for i := 1; i <= services; i++ {
		fmt.Fprintf(&b, " chain endpoint-%d { ip saddr %s jump mark-masq; meta l4proto tcp dnat to %s:%d; }\n", i, addrB, addrB, trafficPort)
		fmt.Fprintf(&b, " chain service-%d { numgen random mod 1 vmap { 0 : goto endpoint-%d }; }\n", i, i)
	}
	b.WriteString(" map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n")
	for i := 1; i <= services; i++ {
		fmt.Fprintf(&b, "%s . tcp . 80 : goto service-%d,\n", serviceIP(i), i)
	}
	b.WriteString(` } ; }
 chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0 return; masquerade; }
 chain filter-forward { type filter hook forward priority -110; ct state new ip daddr 10.96.0.0/12 reject; }
}
table ip calico {
 set cali40s { type ipv4_addr; flags interval; auto-merge; elements = {
`)
	for i := 1; i <= members; i++ {
		fmt.Fprintf(&b, "%s,\n", member(i))
	}
	fmt.Fprintf(&b, "%s,%s } ; }\n", addrA, addrB)
	b.WriteString(` chain raw-pre { type filter hook prerouting priority raw; meta mark set meta mark & 0xfff0ffff; iifname "v*" meta mark set meta mark | 0x40000; meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif 0 drop; meta mark & 0x10000 == 0x10000 accept; }
 chain mangle-pre { type filter hook prerouting priority mangle; ct state established,related accept; }
 chain mangle-post { type filter hook postrouting priority mangle; meta mark & 0x10000 == 0x10000 return; meta mark set meta mark & 0xfff0ffff; ct status dnat return; }
`)
	for _, d := range [][2]string{{"in", "saddr"}, {"out", "daddr"}} {
		fmt.Fprintf(&b, " chain pol-%s {\n", d[0])
		for i := 1; i <= policyRules; i++ {
			fmt.Fprintf(&b, "tcp dport %d ip %s @cali40s meta mark set meta mark | 0x10000\n", 20000+i, d[1])
		}
		fmt.Fprintf(&b, "ip %s @cali40s meta mark set meta mark | 0x10000; }\n", d[1])
	}
	b.WriteString(` chain fromwl { ct state established,related accept; ct state invalid drop; udp dport 4789 drop; jump pol-out; meta mark & 0x10000 == 0x10000 return; drop; }
 chain towl { ct state established,related accept; ct state invalid drop; meta mark set meta mark & 0xfffeffff; jump pol-in; meta mark & 0x10000 == 0x10000 return; drop; }
 chain forwardx { type filter hook forward priority filter; meta mark set meta mark & 0xfff1ffff; iifname vmap { va : jump fromwl, vb : jump fromwl }; oifname vmap { va : jump towl, vb : jump towl }; meta mark & 0x10000 == 0x10000 accept; }
}
`)
	return b.String()
}
