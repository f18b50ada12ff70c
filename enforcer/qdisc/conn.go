// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// entry is one qdisc as the kernel dumps it. The options stay the kernel's own bytes, so that whatever was there can
// be put back exactly; the netlink package's types leave attributes out (fq's orphan_mask among them).
type entry struct {
	Index   int    `json:"-"`
	Kind    string `json:"kind"`
	Handle  uint32 `json:"handle"` // 0: made by the kernel itself, not by anybody's command
	Parent  uint32 `json:"parent"`
	Options []byte `json:"options,omitempty"` // content of TCA_OPTIONS
}

func (e entry) isRoot() bool { return e.Parent == netlink.HANDLE_ROOT }

// isIngress tells ingress and clsact, which stand beside the root and not below it.
func (e entry) isIngress() bool { return e.Parent == netlink.HANDLE_INGRESS }

func (e entry) String() string { return fmt.Sprintf("%s %x:", e.Kind, e.Handle>>16) }

// conn is a connection to the kernel's qdiscs in one network namespace.
type conn struct{ *rtnl.Conn }

func dial(ns netns.NsHandle) (*conn, error) {
	c, err := rtnl.Dial(ns)
	if err != nil {
		return nil, err
	}
	return &conn{c}, nil
}

func (c *conn) request(command, flags int, msg *nl.TcMsg) *nl.NetlinkRequest {
	req := c.Request(command, flags)
	msg.Family = nl.FAMILY_ALL
	req.AddData(msg)
	return req
}

// qdiscs dumps every qdisc of the namespace, by ifindex.
func (c *conn) qdiscs() (map[int][]entry, error) {
	list, err := rtnl.Dump(func() ([]entry, error) {
		raw, err := c.request(unix.RTM_GETQDISC, unix.NLM_F_DUMP, &nl.TcMsg{}).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
		if err != nil {
			return nil, err
		}
		return parseEntries(raw)
	})
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	byIndex := map[int][]entry{}
	for _, e := range list {
		byIndex[e.Index] = append(byIndex[e.Index], e)
	}
	return byIndex, nil
}

func parseEntries(raw [][]byte) ([]entry, error) {
	var list []entry
	for _, m := range raw {
		if len(m) < nl.SizeofTcMsg {
			return nil, errors.New("qdisc message is too short")
		}
		msg := nl.DeserializeTcMsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, fmt.Errorf("parse qdisc message: %w", err)
		}
		e := entry{Index: int(msg.Ifindex), Handle: msg.Handle, Parent: msg.Parent}
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case nl.TCA_KIND:
				e.Kind = nl.BytesToString(a.Value)
			case nl.TCA_OPTIONS:
				e.Options = append([]byte(nil), a.Value...)
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// put makes e the qdisc at its parent, in place of what is there. The kernel keeps the queue where kind and handle
// stay the same.
func (c *conn) put(e entry) error {
	req := c.request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK,
		&nl.TcMsg{Ifindex: int32(e.Index), Handle: e.Handle, Parent: e.Parent})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(e.Kind)))
	if e.Options != nil {
		req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, e.Options))
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set qdisc %s: %w", e.Kind, err)
	}
	return nil
}

// removeRoot gives the device the kernel's default qdisc back.
func (c *conn) removeRoot(index int) error {
	req := c.request(unix.RTM_DELQDISC, unix.NLM_F_ACK, &nl.TcMsg{Ifindex: int32(index), Parent: netlink.HANDLE_ROOT})
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("delete root qdisc: %w", err)
	}
	return nil
}
