// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// end is one end of a veth pair, or any other device, as it is set up.
type end struct {
	in     *Namespace
	name   string
	addrs  []netip.Prefix
	queues int // 1 if 0
}

// connect makes a veth pair between two namespaces, both ends up and with their addresses.
func connect(a, b end, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.name
	attrs.MTU = mtu
	attrs.NumTxQueues, attrs.NumRxQueues = max(a.queues, 1), max(a.queues, 1)
	veth := &netlink.Veth{
		LinkAttrs:       attrs,
		PeerName:        b.name,
		PeerNamespace:   netlink.NsFd(b.in.handle),
		PeerNumTxQueues: uint32(max(b.queues, 1)),
		PeerNumRxQueues: uint32(max(b.queues, 1)),
		PeerMTU:         uint32(mtu),
	}
	if err := a.in.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s in %s, %s in %s: %w", a.name, a.in.Name, b.name, b.in.Name, err)
	}
	return errors.Join(a.configure(), b.configure())
}

// configure gives an existing device its addresses and sets it up.
func (e end) configure() error {
	link, err := e.in.Link(e.name)
	if err != nil {
		return err
	}
	for _, prefix := range e.addrs {
		// No duplicate address detection: it would keep IPv6 waiting for a second.
		addr := &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD}
		if err := e.in.links.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s in %s: %w", prefix, e.name, e.in.Name, err)
		}
	}
	return e.in.Up(e.name)
}

// route adds a route by a gateway, or to the device itself where the gateway is the zero Addr.
func (n *Namespace) route(to netip.Prefix, device string, via netip.Addr) error {
	link, err := n.Link(device)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := n.links.RouteAdd(route); err != nil {
		return fmt.Errorf("add route %s via %s dev %s in %s: %w", to, via, device, n.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostVethName is a name as CNI plugins give it: veth and eight random hexadecimal digits.
func hostVethName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return "veth" + hex.EncodeToString(b[:])
}

// Ethtool commands that switch an offload; linux/ethtool.h.
const (
	ethtoolSetTSO = 0x1f
	ethtoolSetGSO = 0x24
	ethtoolSetGRO = 0x2c
)

// DisableOffloads turns TSO, GSO and GRO of a device off, so that every packet on it is at most one MTU long.
func (n *Namespace) DisableOffloads(device string) error {
	return n.Do(func() error {
		for _, command := range []uint32{ethtoolSetTSO, ethtoolSetGSO, ethtoolSetGRO} {
			off := [2]uint32{command, 0} // struct ethtool_value
			if err := Ethtool(device, unsafe.Pointer(&off)); err != nil {
				return fmt.Errorf("ethtool command %#x on %s in %s: %w", command, device, n.Name, err)
			}
		}
		return nil
	})
}

// Ethtool sends a device of the current network namespace one of ethtool's commands: a struct of linux/ethtool.h that
// begins with the command's number, and holds the answer afterwards. The error is the kernel's own.
func Ethtool(device string, data unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}
