// SPDX-License-Identifier: Apache-2.0

// Package rtnl holds what every user of routing netlink in the enforcer needs: handles that stay in the network
// namespace where they were opened, and dumps that are repeated when the kernel says that they were interrupted.
package rtnl

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// attempts is how often a dump is tried while the kernel's tables keep changing under it.
const attempts = 5

// socketTimeout keeps a hung kernel or a lost reply from hanging the agent.
const socketTimeout = 10 * time.Second

// Dump runs a netlink dump and repeats it while the kernel reports that its tables changed meanwhile. Nothing in the
// enforcer calls a raw dump. The last error wraps netlink.ErrDumpInterrupted where repeating did not help.
func Dump[T any](dump func() ([]T, error)) ([]T, error) {
	var err error
	for range attempts {
		var list []T
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, fmt.Errorf("netlink dump interrupted %d times: %w", attempts, err)
}

// Open returns a routing-netlink handle in ns. The caller closes it.
func Open(ns netns.NsHandle) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set timeout of netlink socket: %w", err)
	}
	return h, nil
}
