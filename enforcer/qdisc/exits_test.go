// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lab builds a node by names.
type lab struct {
	node
	index map[string]int
}

func newLab() *lab {
	l := &lab{node: node{links: map[int]netlink.Link{}, pods: map[int]bool{}}, index: map[string]int{}}
	l.add(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagLoopback, NetNsID: -1}}, "lo")
	return l
}

func (l *lab) add(link netlink.Link, name string) *lab {
	a := link.Attrs()
	a.Name, a.Index = name, len(l.links)+1
	l.links[a.Index], l.index[name] = link, a.Index
	return l
}

func here() netlink.LinkAttrs { return netlink.LinkAttrs{NetNsID: -1} }

func (l *lab) nic(names ...string) *lab {
	for _, name := range names {
		l.add(&netlink.Device{LinkAttrs: here()}, name)
	}
	return l
}

// veth adds a veth whose other end is in namespace nsid; -1 is this one.
func (l *lab) veth(name string, nsid int) *lab {
	return l.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{NetNsID: nsid, ParentIndex: 2}}, name)
}

func (l *lab) master(master string, ports ...string) *lab {
	for _, port := range ports {
		l.links[l.index[port]].Attrs().MasterIndex = l.index[master]
	}
	return l
}

func (l *lab) parent(child, parent string) *lab {
	l.links[l.index[child]].Attrs().ParentIndex = l.index[parent]
	return l
}

// route adds one; an empty gateway means on link, an empty dst the default route as the netlink package shows it.
func (l *lab) route(dst, gw, dev string) *lab {
	r := netlink.Route{Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, LinkIndex: l.index[dev], Gw: net.ParseIP(gw)}
	if dst != "" {
		_, r.Dst, _ = net.ParseCIDR(dst)
	}
	l.routes = append(l.routes, r)
	return l
}

func (l *lab) names(indexes []int) []string {
	var names []string
	for _, i := range indexes {
		names = append(names, l.links[i].Attrs().Name)
	}
	return names
}

func TestExits(t *testing.T) {
	for name, test := range map[string]struct {
		lab  *lab
		want []string
	}{
		"one NIC, bridge CNI": {
			newLab().nic("eth0").add(&netlink.Bridge{LinkAttrs: here()}, "cni0").veth("veth1", 0).master("cni0", "veth1").
				route("", "192.0.2.1", "eth0").route("10.1.0.0/24", "", "cni0").route("169.254.0.0/16", "", "eth0"),
			[]string{"eth0"},
		},
		"IPv6 only":                    {newLab().nic("eth0", "eth1").route("::/0", "fe80::1", "eth1").route("fe80::/64", "", "eth0"), []string{"eth1"}},
		"link-local only":              {newLab().nic("eth0").route("fe80::/64", "", "eth0").route("ff00::/8", "", "eth0"), nil},
		"no route":                     {newLab().nic("eth0"), nil},
		"two NICs":                     {newLab().nic("eth0", "eth1").route("", "192.0.2.1", "eth0").route("198.51.100.0/24", "", "eth1"), []string{"eth0", "eth1"}},
		"point-to-point CNI":           {newLab().nic("eth0").veth("cali1", 0).route("", "192.0.2.1", "eth0").route("10.1.0.5/32", "", "cali1").route("fd00::5/128", "", "cali1"), []string{"eth0"}},
		"veth uplink":                  {newLab().veth("up0", 3).route("", "192.0.2.1", "up0"), []string{"up0"}},
		"veth uplink, subnet":          {newLab().veth("up0", 3).route("192.0.2.0/24", "", "up0"), []string{"up0"}},
		"veth uplink, host by gateway": {newLab().veth("up0", 3).route("198.51.100.7/32", "192.0.2.1", "up0"), []string{"up0"}},
		"veth with both ends here":     {newLab().nic("eth0").veth("cilium_host", -1).route("", "192.0.2.1", "eth0").route("10.0.0.0/24", "10.0.0.9", "cilium_host"), []string{"eth0"}},
		"tunnels": {
			newLab().nic("eth0").add(&netlink.Vxlan{LinkAttrs: here()}, "flannel.1").add(&netlink.Wireguard{LinkAttrs: here()}, "wg0").
				add(&netlink.Iptun{LinkAttrs: here()}, "tunl0").add(&netlink.Geneve{LinkAttrs: here()}, "gen0").add(&netlink.Gretun{LinkAttrs: here()}, "gre1").
				route("", "192.0.2.1", "eth0").route("10.1.1.0/24", "10.1.1.0", "flannel.1").route("10.1.2.0/24", "", "wg0").
				route("10.1.3.0/24", "", "tunl0").route("10.1.4.0/24", "", "gen0").route("10.1.5.0/24", "", "gre1"),
			[]string{"eth0"},
		},
		"VLAN on bond": {
			newLab().nic("eth0", "eth1", "eth2").add(&netlink.Bond{LinkAttrs: here()}, "bond0").add(&netlink.Vlan{LinkAttrs: here()}, "bond0.7").
				master("bond0", "eth0", "eth1").parent("bond0.7", "bond0").route("", "192.0.2.1", "bond0.7"),
			[]string{"eth0", "eth1"},
		},
		"bridge with a NIC": {
			newLab().nic("eth0").add(&netlink.Bridge{LinkAttrs: here()}, "br0").veth("veth1", 0).master("br0", "eth0", "veth1").route("", "192.0.2.1", "br0"),
			[]string{"eth0"},
		},
		"dummy":              {newLab().add(&netlink.Dummy{LinkAttrs: here()}, "dummy0").route("198.51.100.0/24", "", "dummy0"), nil},
		"loopback":           {newLab().route("198.51.100.0/24", "", "lo"), nil},
		"route of no device": {newLab().route("", "192.0.2.1", "gone0"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.lab.names(test.lab.exits())); diff != "" {
				t.Errorf("exits (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExitsLeavePodsOut(t *testing.T) {
	l := newLab().nic("eth0").veth("veth1", 0).route("", "192.0.2.1", "eth0").route("10.1.0.0/24", "", "veth1")
	l.pods[l.index["veth1"]] = true
	if diff := cmp.Diff([]string{"eth0"}, l.names(l.exits())); diff != "" {
		t.Errorf("exits (-want +got):\n%s", diff)
	}
}

func TestExitsRouteKinds(t *testing.T) {
	l := newLab().nic("eth0", "eth1", "eth2", "eth3")
	local := netlink.Route{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, LinkIndex: l.index["eth0"]}
	broadcast := netlink.Route{Type: unix.RTN_BROADCAST, Table: unix.RT_TABLE_LOCAL, LinkIndex: l.index["eth0"]}
	multi := netlink.Route{Type: unix.RTN_UNICAST, Table: 100, MultiPath: []*netlink.NexthopInfo{{LinkIndex: l.index["eth1"]}, {LinkIndex: l.index["eth2"]}}}
	l.routes = []netlink.Route{local, broadcast, multi}
	if diff := cmp.Diff([]string{"eth1", "eth2"}, l.names(l.exits())); diff != "" {
		t.Errorf("exits (-want +got):\n%s", diff)
	}
}

func TestExitsEndInALoop(t *testing.T) {
	l := newLab().add(&netlink.Vlan{LinkAttrs: here()}, "a").add(&netlink.Vlan{LinkAttrs: here()}, "b").parent("a", "b").parent("b", "a").route("", "192.0.2.1", "a")
	if got := l.exits(); len(got) != 0 {
		t.Errorf("exits = %v; want none", l.names(got))
	}
}

func TestNamed(t *testing.T) {
	l := newLab().nic("eth0", "eth1")
	got, err := l.named([]string{"eth1", "eth0"})
	if diff := cmp.Diff([]string{"eth0", "eth1"}, l.names(got)); diff != "" || err != nil {
		t.Errorf("named: %v (-want +got):\n%s", err, diff)
	}
	if _, err := l.named([]string{"eth9"}); err == nil {
		t.Error("no error for a device that does not exist")
	}
}
