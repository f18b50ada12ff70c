// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"fmt"
	"net"
	"sort"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// node is what decides where packets leave.
type node struct {
	links  map[int]netlink.Link
	routes []netlink.Route
	pods   map[int]bool // ifindexes of pods' host-side devices
}

// exits returns the ifindexes, sorted, of the devices that put packets on a wire: those that routes point to, seen
// through VLANs, bonds and bridges down to what they use. Tunnels are left out, as the encapsulated packet is routed
// again and the departure time stays with it; so are devices that lead to pods.
func (n node) exits() []int {
	found := map[int]bool{}
	for _, r := range n.routes {
		for _, index := range n.towards(r) {
			n.resolve(index, found, 0)
		}
	}
	return sorted(found)
}

// towards returns the devices of a route by which packets may leave the node.
func (n node) towards(r netlink.Route) []int {
	if r.Type != unix.RTN_UNICAST || r.Table == unix.RT_TABLE_LOCAL || isLinkLocal(r.Dst) {
		return nil
	}
	hops := []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw}}
	if len(r.MultiPath) > 0 {
		hops = r.MultiPath
	}
	var list []int
	for _, hop := range hops {
		link, ok := n.links[hop.LinkIndex]
		if !ok {
			continue
		}
		// Point-to-point CNIs give each pod a host route onto its veth.
		if isVeth(link) && isHostRoute(r.Dst) && hop.Gw == nil && r.Via == nil {
			continue
		}
		list = append(list, hop.LinkIndex)
	}
	return list
}

// maxDepth is how many virtual devices may be stacked; it ends loops that the kernel should not allow.
const maxDepth = 8

func (n node) resolve(index int, found map[int]bool, depth int) {
	link, ok := n.links[index]
	if !ok || depth > maxDepth || n.pods[index] {
		return
	}
	attrs := link.Attrs()
	switch link.Type() {
	case "bond", "team":
		n.ports(index, found, depth, func(netlink.Link) bool { return true })
	case "bridge":
		// The ports to pods are no way out, limited or not.
		n.ports(index, found, depth, func(port netlink.Link) bool { return !isVeth(port) && port.Type() != "tuntap" })
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec":
		if attrs.NetNsID < 0 {
			n.resolve(attrs.ParentIndex, found, depth+1)
		}
	case "veth":
		// With both ends here (cilium_host, say) packets only come back in.
		if attrs.NetNsID >= 0 {
			found[index] = true
		}
	case "netkit", "vxlan", "geneve", "bareudp", "gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip",
		"sit", "ip6tnl", "vti", "vti6", "xfrm", "wireguard", "tuntap", "tun", "dummy", "ifb", "vrf", "nlmon", "gtp", "openvswitch":
		// tunnels, and what sends nothing
	default:
		if attrs.Flags&net.FlagLoopback == 0 {
			found[index] = true
		}
	}
}

func (n node) ports(master int, found map[int]bool, depth int, wanted func(netlink.Link) bool) {
	for index, link := range n.links {
		if link.Attrs().MasterIndex == master && wanted(link) {
			n.resolve(index, found, depth+1)
		}
	}
}

// named returns the ifindexes of the devices that somebody chose by name, and an error for the first unknown one.
func (n node) named(names []string) ([]int, error) {
	found := map[int]bool{}
	for _, name := range names {
		index := 0
		for i, link := range n.links {
			if link.Attrs().Name == name {
				index = i
			}
		}
		if index == 0 {
			return sorted(found), fmt.Errorf("exit device %q does not exist", name)
		}
		found[index] = true
	}
	return sorted(found), nil
}

func isVeth(link netlink.Link) bool { return link.Type() == "veth" }

func isHostRoute(dst *net.IPNet) bool {
	if dst == nil {
		return false
	}
	ones, bits := dst.Mask.Size()
	return bits > 0 && ones == bits
}

// isLinkLocal tells routes that every device has by itself.
func isLinkLocal(dst *net.IPNet) bool {
	return dst != nil && (dst.IP.IsLinkLocalUnicast() || dst.IP.IsMulticast())
}

func sorted(set map[int]bool) []int {
	list := make([]int, 0, len(set))
	for index := range set {
		list = append(list, index)
	}
	sort.Ints(list)
	return list
}
