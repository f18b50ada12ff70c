// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Device names and addresses of every topology.
//
//	pod0 eth0 ── vethXXXXXXXX ┐                        uplink            eth0
//	pod1 eth0 ── vethXXXXXXXX ┤ node: cni0 10.244.0.1 ─ 192.0.2.1 ────── 192.0.2.2 host
const (
	Uplink = "uplink" // node's device towards the host
	Bridge = "cni0"   // node's bridge; none with Options.Direct
	Eth0   = "eth0"   // of a pod, and of the host
	VXLAN  = "vxlan1" // of node and host, with Options.VXLAN
)

var (
	nodeAddr, hostAddr   = netip.MustParsePrefix("192.0.2.1/30"), netip.MustParsePrefix("192.0.2.2/30")
	nodeAddr6, hostAddr6 = netip.MustParsePrefix("2001:db8:2::1/64"), netip.MustParsePrefix("2001:db8:2::2/64")
	podNet, podNet6      = netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")
	gateway, gateway6    = netip.MustParsePrefix("10.244.0.1/24"), netip.MustParsePrefix("fd00:10:244::1/64")
	// The overlay: its own transfer net, and a "pod" of the second host behind it.
	overlayNode, overlayHost = netip.MustParsePrefix("10.244.255.1/30"), netip.MustParsePrefix("10.244.255.2/30")
	remotePod                = netip.MustParsePrefix("10.244.1.2/32")
)

const (
	vxlanOverhead = 50 // bytes: outer Ethernet, IPv4, UDP and VXLAN headers
	maxPods       = 250
)

// Options of a topology. The zero value is one pod behind a bridge, MTU 1500, offloads on, queues as the kernel sets
// them.
type Options struct {
	Pods         int    // 1 if 0; at most 250
	MTU          int    // bytes, of every device; 1500 if 0; the pods get 50 less with VXLAN
	Direct       bool   // no bridge: each pod on a link of its own, routed by the node (the CNI plugin ptp, Calico)
	VXLAN        bool   // a tunnel to the host, with a pod of the host behind it: Topology.Remote is that pod
	SNAT         bool   // the pods appear as the node's address; Build's error wraps ErrNoSNAT where that cannot be
	UplinkQueues int    // transmit queues of the uplink; 1 if 0
	NoOffload    bool   // TSO, GSO and GRO off on the pods' devices and the uplink
	NetnsDir     string // also make the pods' namespaces files there, named as the pods; "" for none
}

// Pod is a namespace with one device Eth0, whose host side is in the node's namespace.
type Pod struct {
	*Namespace
	Addr, Addr6 netip.Addr
	HostDevice  string // the veth in the node's namespace
	HostIndex   int    // its interface index there
	NetnsPath   string // with Options.NetnsDir
}

// Topology is a node with pods and a second host. The node forwards, IPv4 and IPv6.
type Topology struct {
	Node, Host *Namespace
	Pods       []*Pod
	// Remote is the address on the host that the pods should send to, Remote6 its IPv6 counterpart; with VXLAN,
	// Remote is behind the tunnel and Remote6 is not.
	Remote, Remote6 netip.Addr
	// HostDevice is where the host receives what is sent to Remote: the place for a meter.
	HostDevice string

	options    Options
	namespaces []*Namespace
}

// New builds a topology that ends with the test; it fails the test itself, and skips it where root or SNAT is missing.
func New(t TB, o Options) *Topology {
	t.Helper()
	RequireRoot(t)
	topology, err := Build(o)
	if errors.Is(err, ErrNoSNAT) {
		Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatalf("build network: %v", err)
	}
	t.Cleanup(func() {
		if err := topology.Close(); err != nil {
			t.Errorf("clean up network: %v", err)
		}
	})
	return topology
}

// Build makes a topology; the caller closes it. Nothing is left behind after an error.
func Build(o Options) (*Topology, error) {
	o.Pods = max(o.Pods, 1)
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Pods > maxPods {
		return nil, fmt.Errorf("%d pods: at most %d", o.Pods, maxPods)
	}
	if o.VXLAN && o.SNAT {
		return nil, errors.New("options VXLAN and SNAT exclude each other: the tunnel's routes need the pods' addresses")
	}
	t := &Topology{options: o, Remote: hostAddr.Addr(), Remote6: hostAddr6.Addr(), HostDevice: Eth0}
	if err := t.build(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Topology) build() error {
	steps := []func() error{t.addHosts, t.addUplink, t.addBridge, t.addOverlay}
	for i := range t.options.Pods {
		steps = append(steps, func() error { return t.addPod(i) })
	}
	if t.options.SNAT {
		steps = append(steps, t.enableSNAT)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return t.settle()
}

// settle waits until the kernel has seen every carrier, which it looks at in its own time: before, a device drops what
// it is given. Where that takes longer, the test will say what is wrong.
func (t *Topology) settle() error {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		waiting := false
		for _, n := range t.namespaces {
			links, err := n.links.LinkList()
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				waiting = true
				continue
			}
			if err != nil {
				return fmt.Errorf("list devices: %w", err)
			}
			for _, l := range links {
				a := l.Attrs()
				waiting = waiting || l.Type() == "veth" && a.Flags&net.FlagUp != 0 && a.OperState != netlink.OperUp
			}
		}
		if !waiting {
			return nil
		}
	}
	return nil
}

// Close ends all namespaces. Closing again does nothing.
func (t *Topology) Close() error {
	var errs []error
	for _, n := range t.namespaces {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

func (t *Topology) newNamespace(name string) (*Namespace, error) {
	n, err := NewNamespace(name)
	if err != nil {
		return nil, err
	}
	t.namespaces = append(t.namespaces, n)
	// No duplicate address detection for link-local addresses either: until it ends, nothing is forwarded over IPv6.
	return n, errors.Join(n.Sysctl("net.ipv6.conf.all.accept_dad", "0"), n.Sysctl("net.ipv6.conf.default.accept_dad", "0"))
}

func (t *Topology) addHosts() (err error) {
	if t.Node, err = t.newNamespace("node"); err != nil {
		return err
	}
	if t.Host, err = t.newNamespace("host"); err != nil {
		return err
	}
	return errors.Join(
		t.Node.Sysctl("net.ipv4.ip_forward", "1"),
		t.Node.Sysctl("net.ipv6.conf.all.forwarding", "1"))
}

func (t *Topology) addUplink() error {
	err := connect(
		end{in: t.Node, name: Uplink, addrs: []netip.Prefix{nodeAddr, nodeAddr6}, queues: t.options.UplinkQueues},
		end{in: t.Host, name: Eth0, addrs: []netip.Prefix{hostAddr, hostAddr6}, queues: t.options.UplinkQueues},
		t.options.MTU)
	if err != nil {
		return err
	}
	if t.options.NoOffload {
		if err := t.Node.DisableOffloads(Uplink); err != nil {
			return err
		}
	}
	if t.options.SNAT {
		return t.Host.route(podNet6, Eth0, nodeAddr6.Addr())
	}
	return errors.Join(
		t.Host.route(podNet, Eth0, nodeAddr.Addr()),
		t.Host.route(podNet6, Eth0, nodeAddr6.Addr()))
}

func (t *Topology) addBridge() error {
	if t.options.Direct {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = Bridge, t.podMTU()
	// A fixed address: otherwise it changes with the ports, and the pods' neighbour entries go stale.
	attrs.HardwareAddr = net.HardwareAddr{0x0a, 0x58, 10, 244, 0, 1}
	if err := t.Node.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	return end{in: t.Node, name: Bridge, addrs: []netip.Prefix{gateway, gateway6}}.configure()
}

func (t *Topology) podMTU() int {
	if t.options.VXLAN {
		return t.options.MTU - vxlanOverhead
	}
	return t.options.MTU
}
