// SPDX-License-Identifier: Apache-2.0

// Package node makes a Kubernetes node's network out of the network namespace that it runs in: a bridge with pods
// behind veths, forwarding, and a "NIC" to a second host.
//
//	pod netns          this netns (the node)                  netns "other-host"
//	eth0 10.244.0.x -- vethx - cni0 10.244.0.1 - nic0 192.0.2.1 -- eth0 192.0.2.2
package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/tests/netlab"
)

// Addresses: the pods' as CNI plugins give them, the hosts' from the range that RFC 5737 keeps for documentation.
var (
	IP        = net.IPv4(192, 0, 2, 1)
	OtherHost = net.IPv4(192, 0, 2, 2)
	bridgeIP  = net.IPv4(10, 244, 0, 1)
	hostBits  = net.CIDRMask(24, 32)
)

const (
	bridge = "cni0"
	nic    = "nic0"
	mtu    = 1500
	// netnsDir is where container runtimes keep the pods' network namespaces.
	netnsDir = "/var/run/netns"
)

// Node is the network around the pods.
type Node struct {
	Other *netlab.Namespace // the other host
	pods  int
}

// Pod is one pod's network.
type Pod struct {
	*netlab.Namespace // pinned below /var/run/netns, as container runtimes do
	IP                net.IP
	Device            string // its host-side device
}

// Build makes the node in the current network namespace.
func Build() (*Node, error) {
	if err := setUp("lo"); err != nil {
		return nil, err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, fmt.Errorf("enable forwarding: %w", err)
	}
	link := &netlink.Bridge{LinkAttrs: attrs(bridge)}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", bridge, err)
	}
	if err := address(bridge, bridgeIP); err != nil {
		return nil, err
	}
	other, err := netlab.NewNamespace("other-host")
	if err != nil {
		return nil, err
	}
	if err := addVeth(nic, other); err != nil {
		return nil, err
	}
	if err := address(nic, IP); err != nil {
		return nil, err
	}
	pods := &net.IPNet{IP: bridgeIP.Mask(hostBits), Mask: hostBits}
	err = other.Do(func() error {
		return errors.Join(address("eth0", OtherHost), route(pods, IP))
	})
	return &Node{Other: other}, err
}

// AddPod gives a pod its network namespace, its veth and its address.
func (n *Node) AddPod(name string) (Pod, error) {
	ns, err := netlab.NewNamespace(name)
	if err != nil {
		return Pod{}, err
	}
	if _, err := ns.Pin(netnsDir); err != nil {
		return Pod{}, err
	}
	n.pods++
	pod := Pod{Namespace: ns, IP: net.IPv4(10, 244, 0, byte(1+n.pods)), Device: fmt.Sprintf("veth%d", n.pods)}
	if err := addVeth(pod.Device, ns); err != nil {
		return Pod{}, err
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return Pod{}, fmt.Errorf("find %s: %w", bridge, err)
	}
	link, err := netlink.LinkByName(pod.Device)
	if err != nil {
		return Pod{}, fmt.Errorf("find %s: %w", pod.Device, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return Pod{}, fmt.Errorf("put %s on %s: %w", pod.Device, bridge, err)
	}
	if err := setUp(pod.Device); err != nil {
		return Pod{}, err
	}
	return pod, ns.Do(func() error {
		return errors.Join(address("eth0", pod.IP), route(nil, bridgeIP))
	})
}

// Start starts cmd inside the namespace. Only the network is switched, as container runtimes do.
func Start(ns *netlab.Namespace, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return ns.Do(cmd.Start)
}

// addVeth joins this namespace and ns: name here, eth0 there.
func addVeth(name string, ns *netlab.Namespace) error {
	link := netlink.NewVeth(attrs(name))
	link.PeerName, link.PeerNamespace, link.PeerMTU = "eth0", netlink.NsFd(ns.Handle()), mtu
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	return nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	return a
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// address gives the link an address of its /24 and brings it up.
func address(name string, ip net.IP) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: hostBits}}); err != nil {
		return fmt.Errorf("add %s to %s: %w", ip, name, err)
	}
	return setUp(name)
}

// route adds a route by the gateway; nil is the default route.
func route(to *net.IPNet, via net.IP) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: to, Gw: via}); err != nil {
		return fmt.Errorf("add route by %s: %w", via, err)
	}
	return nil
}
