// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Conn is a handle that can also send what the netlink package has no function for.
type Conn struct {
	*netlink.Handle
	sockets map[int]*nl.SocketHandle
}

// Dial opens a connection in a network namespace, as Open does.
func Dial(ns netns.NsHandle) (*Conn, error) {
	h, err := Open(ns)
	if err != nil {
		return nil, err
	}
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	timeout := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		h.Close()
		s.Close()
		return nil, fmt.Errorf("set timeout of netlink socket: %w", err)
	}
	return &Conn{Handle: h, sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

// Close lets go of the sockets.
func (c *Conn) Close() {
	c.Handle.Close()
	c.sockets[unix.NETLINK_ROUTE].Close()
}

// Request is one that goes by this connection; the caller adds data and executes it.
func (c *Conn) Request(command, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(command, flags)
	req.Sockets = c.sockets
	return req
}

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// LinkList lists the namespace's devices without their counters: with those, which nobody here reads, the kernel and
// the parser take three times as long, most of it under the lock that every CNI ADD waits for.
func (c *Conn) LinkList() ([]netlink.Link, error) { return c.linkList(nil) }

// LinkListIn lists the devices of another namespace, by its id in this one, without a look from inside. What they say of
// further namespaces (LinkAttrs.NetNsID) is not what they say there. Linux 4.20; needs CAP_NET_ADMIN over that namespace.
func (c *Conn) LinkListIn(netns int) ([]netlink.Link, error) {
	return c.linkList(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(netns))))
}

func (c *Conn) linkList(of *nl.RtAttr) ([]netlink.Link, error) {
	req := c.Request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	if of != nil {
		req.AddData(of)
	}
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	links := make([]netlink.Link, 0, len(messages))
	for _, m := range messages {
		l, err := netlink.LinkDeserialize(nil, m)
		if err != nil {
			return nil, fmt.Errorf("parse link message: %w", err)
		}
		links = append(links, l)
	}
	return links, nil
}
