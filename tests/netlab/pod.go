// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

var (
	everywhere  = netip.MustParsePrefix("0.0.0.0/0")
	everywhere6 = netip.MustParsePrefix("::/0")
)

// addPod makes pod number i with the addresses ….(i+2).
func (t *Topology) addPod(i int) error {
	n, err := t.newNamespace(fmt.Sprintf("pod%d", i))
	if err != nil {
		return err
	}
	pod := &Pod{Namespace: n, Addr: nth(podNet, i+2), Addr6: nth(podNet6, i+2), HostDevice: hostVethName()}
	t.Pods = append(t.Pods, pod)
	bits, bits6 := podNet.Bits(), podNet6.Bits()
	if t.options.Direct {
		bits, bits6 = 32, 128
	}
	inPod := end{in: n, name: Eth0, addrs: []netip.Prefix{netip.PrefixFrom(pod.Addr, bits), netip.PrefixFrom(pod.Addr6, bits6)}}
	atNode := end{in: t.Node, name: pod.HostDevice}
	if t.options.Direct {
		atNode.addrs = []netip.Prefix{netip.PrefixFrom(gateway.Addr(), 32), netip.PrefixFrom(gateway6.Addr(), 128)}
	}
	if err := connect(inPod, atNode, t.podMTU()); err != nil {
		return err
	}
	link, err := t.Node.Link(pod.HostDevice)
	if err != nil {
		return err
	}
	pod.HostIndex = link.Attrs().Index
	return errors.Join(t.attachPod(pod, link), t.finishPod(pod))
}

// attachPod connects the pod's host side with the rest of the node, and routes the pod's packets to the node.
func (t *Topology) attachPod(pod *Pod, link netlink.Link) error {
	if t.options.Direct {
		return errors.Join(
			t.Node.route(netip.PrefixFrom(pod.Addr, 32), pod.HostDevice, netip.Addr{}),
			t.Node.route(netip.PrefixFrom(pod.Addr6, 128), pod.HostDevice, netip.Addr{}),
			pod.route(netip.PrefixFrom(gateway.Addr(), 32), Eth0, netip.Addr{}),
			pod.route(netip.PrefixFrom(gateway6.Addr(), 128), Eth0, netip.Addr{}))
	}
	bridge, err := t.Node.Link(Bridge)
	if err != nil {
		return err
	}
	if err := t.Node.links.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("add %s to the bridge: %w", pod.HostDevice, err)
	}
	return nil
}

func (t *Topology) finishPod(pod *Pod) (err error) {
	err = errors.Join(
		pod.route(everywhere, Eth0, gateway.Addr()),
		pod.route(everywhere6, Eth0, gateway6.Addr()))
	if err != nil {
		return err
	}
	if t.options.NoOffload {
		err = errors.Join(pod.DisableOffloads(Eth0), t.Node.DisableOffloads(pod.HostDevice))
	}
	if t.options.NetnsDir != "" && err == nil {
		pod.NetnsPath, err = pod.Pin(t.options.NetnsDir)
	}
	return err
}

// nth is the n-th address of a network, n below 256.
func nth(network netip.Prefix, n int) netip.Addr {
	b := network.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// addOverlay makes a VXLAN tunnel between node and host, and an address on the host that is reached through it.
func (t *Topology) addOverlay() error {
	if !t.options.VXLAN {
		return nil
	}
	sides := []struct {
		in            *Namespace
		underlay      string
		local, remote netip.Addr
		addrs         []netip.Prefix
	}{
		{t.Node, Uplink, nodeAddr.Addr(), hostAddr.Addr(), []netip.Prefix{overlayNode}},
		{t.Host, Eth0, hostAddr.Addr(), nodeAddr.Addr(), []netip.Prefix{overlayHost, remotePod}},
	}
	for _, side := range sides {
		underlay, err := side.in.Link(side.underlay)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = VXLAN, t.podMTU()
		tunnel := &netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: 1, Port: 4789, VtepDevIndex: underlay.Attrs().Index,
			SrcAddr: side.local.AsSlice(), Group: side.remote.AsSlice(),
		}
		if err := side.in.links.LinkAdd(tunnel); err != nil {
			return fmt.Errorf("add VXLAN in %s: %w", side.in.Name, err)
		}
		if err := (end{in: side.in, name: VXLAN, addrs: side.addrs}).configure(); err != nil {
			return err
		}
	}
	t.Remote, t.HostDevice = remotePod.Addr(), VXLAN
	// What comes from the pods through the tunnel is answered through the tunnel.
	if err := t.replaceRoute(t.Host, podNet, VXLAN, overlayNode.Addr()); err != nil {
		return err
	}
	return t.Node.route(remotePod, VXLAN, overlayHost.Addr())
}

func (t *Topology) replaceRoute(n *Namespace, to netip.Prefix, device string, via netip.Addr) error {
	link, err := n.Link(device)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Gw: via.AsSlice()}
	if err := n.links.RouteReplace(route); err != nil {
		return fmt.Errorf("replace route %s in %s: %w", to, n.Name, err)
	}
	return nil
}
