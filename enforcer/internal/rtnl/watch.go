// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Change is what sort of table the kernel reported a change of.
type Change int

const (
	ChangeLink  Change = iota // devices came, went or changed
	ChangeRoute               // routes of either family
	ChangeTC                  // qdiscs and filters
	ChangeLost                // the kernel drops notices: anything may have changed, and more may until ChangeWhole
	ChangeWhole               // no notice is lost from now on; what was before may have been
)

const (
	// receiveBuffer holds the notices of some hundred pods that start at once, in bytes as the kernel counts them.
	receiveBuffer = 1 << 20
	// emptyAfter is how long a queue that ran over is waited on until it counts as empty.
	emptyAfter = 20 * time.Millisecond
)

// Watch calls changed for each change of devices, routes, qdiscs and filters in ns, from one goroutine, until ctx
// ends; it returns nil then. The calls must be quick. ns may be closed once ready was called; ready is called when
// no later change can be missed.
func Watch(ctx context.Context, ns netns.NsHandle, ready func(), changed func(Change, syscall.NetlinkMessage)) error {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("subscribe to netlink: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	if err := s.SetReceiveBufferSize(receiveBuffer, true); err != nil && ctx.Err() == nil {
		return fmt.Errorf("set receive buffer of netlink socket: %w", err)
	}
	ready()
	lossy := false
	for {
		msgs, from, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// The kernel says so once, and then drops in silence until the queue is empty.
			lossy = true
			err = s.SetReceiveTimeout(&unix.Timeval{Usec: emptyAfter.Microseconds()})
			changed(ChangeLost, syscall.NetlinkMessage{})
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("set timeout of netlink socket: %w", err)
			}
			continue
		case errors.Is(err, unix.EAGAIN):
			if lossy {
				lossy = false
				err = s.SetReceiveTimeout(&unix.Timeval{})
				changed(ChangeWhole, syscall.NetlinkMessage{})
				if err != nil && ctx.Err() == nil {
					return fmt.Errorf("set timeout of netlink socket: %w", err)
				}
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("receive netlink notice: %w", err)
		case from.Pid != nl.PidKernel:
			continue
		}
		for _, m := range msgs {
			if c, ok := classify(m.Header.Type); ok {
				changed(c, m)
			}
		}
	}
}

func classify(message uint16) (Change, bool) {
	switch message {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return ChangeLink, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return ChangeRoute, true
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER, unix.RTM_NEWCHAIN, unix.RTM_DELCHAIN:
		return ChangeTC, true
	}
	return 0, false
}

// DeviceOfTC is the ifindex of the device whose qdisc or filter a notice is about, 0 where it names none (shared blocks).
func DeviceOfTC(m syscall.NetlinkMessage) int {
	if len(m.Data) < nl.SizeofTcMsg {
		return 0
	}
	return max(0, int(nl.DeserializeTcMsg(m.Data).Ifindex))
}
