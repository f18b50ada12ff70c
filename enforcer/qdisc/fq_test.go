// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The tests of this file set a real fq: they run where the kernel has it.

func (b *box) sync(m *Manager, veths ...int) Result {
	b.t.Helper()
	r, err := m.Sync(veths)
	b.must(err, "sync")
	return r
}

func TestFqOnExitDevice(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		before := b.tree(m, up)
		if d := b.one(b.sync(m)); !d.Paced || d.Qdisc != "fq" || d.Reason != "" {
			b.t.Errorf("exit device: %+v; want fq, paced", d)
		}
		set := b.tree(m, up)
		if !set.ours() || !isOurFq(set.root, exitBuckets) {
			b.t.Errorf("root is %v; want our fq", set.root)
		}
		b.quietSync(m)

		// A new agent adopts, and keeps the record of what was there.
		again := b.manager(Options{})
		defer again.Close()
		b.sync(again)
		b.must(again.Restore(), "restore")
		if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after restore):\n%s", diff)
		}
	})
}

// quietSync asserts that a second Sync sends no command that changes anything: the kernel reports each.
func (b *box) quietSync(m *Manager) {
	b.t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	b.must(err, "subscribe")
	defer s.Close()
	b.must(s.SetReceiveTimeout(&unix.Timeval{Usec: 200000}), "set timeout")
	b.sync(m)
	if msgs, _, err := s.Receive(); err == nil {
		b.t.Errorf("second sync changed %d qdiscs", len(msgs))
	}
}

func TestFqFollowsRoutes(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		first := b.uplink("up0", "192.0.2.2/24", "")
		second := b.uplink("up1", "198.51.100.2/24", "")
		b.sync(m)
		if !b.tree(m, first).ours() || !b.tree(m, second).ours() {
			b.t.Error("fq is not on both uplinks")
		}
		b.must(netlink.LinkSetDown(second), "set up1 down") // takes its routes away
		b.sync(m)
		if !b.tree(m, first).ours() || b.tree(m, second).ours() {
			b.t.Error("fq did not follow the routes")
		}
		b.must(netlink.LinkDel(first), "delete up0")
		b.sync(m)
		if records, err := loadRecords(b.dir); err != nil || len(records) != 0 {
			b.t.Errorf("records of devices that are gone: %v, %v", records, err)
		}
	})
}

func TestFqRepairsWhatSomebodyChanged(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		b.sync(m)
		b.must(m.conn.removeRoot(up.Attrs().Index), "remove fq")
		if d := b.one(b.sync(m)); !d.Paced {
			b.t.Errorf("exit device: %+v; want fq again", d)
		}
		b.must(m.conn.put(entry{Index: up.Attrs().Index, Kind: "fq", Handle: ourHandle, Parent: root,
			Options: nl.NewRtAttr(nl.TCA_FQ_FLOW_PLIMIT, nl.Uint32Attr(50)).Serialize()}), "change flow_limit")
		if d := b.one(b.sync(m)); !d.Paced {
			b.t.Errorf("exit device: %+v; want our parameters again", d)
		}
	})
}

func TestFqRestoresAdministratorsOwnToTheByte(t *testing.T) {
	needFq(t)
	for _, kind := range []string{"fq", "fq_codel", "pfifo_fast", "mq"} {
		t.Run(kind, func(t *testing.T) {
			inBox(t, func(b *box) {
				m := b.manager(Options{})
				defer m.Close()
				up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
				typed := entry{Index: up.Attrs().Index, Kind: kind, Handle: 0x230000, Parent: root}
				if kind == "fq" {
					typed.Options = nl.NewRtAttr(nl.TCA_FQ_FLOW_PLIMIT, nl.Uint32Attr(77)).Serialize()
				}
				if err := m.conn.put(typed); err != nil {
					t.Skipf("kernel without %s: %v", kind, err)
				}
				before := b.tree(m, up)
				if d := b.one(b.sync(m)); !d.Paced {
					b.t.Errorf("exit device: %+v; want paced", d)
				}
				if kind == "mq" {
					if now := b.tree(m, up); now.root.Kind != "mq" || len(now.below) != 2 {
						b.t.Errorf("%s; want mq with fq at both queues", now.describe())
					}
					b.quietSync(m)
				}
				b.must(m.Restore(), "restore")
				if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
					b.t.Errorf("(-before +after restore):\n%s", diff)
				}
			})
		})
	}
}

// TestFqOnKernelsMq takes a device whose mq the kernel made itself, as on a physical NIC.
func TestFqOnKernelsMq(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = "ifb7", 3, 3
		b.must(netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}), "add ifb7, a device with hardware-like queues")
		link, err := netlink.LinkByName("ifb7")
		b.must(err, "find ifb7")
		b.must(netlink.LinkSetUp(link), "set ifb7 up")
		m := b.manager(Options{Exits: []string{"ifb7"}})
		defer m.Close()
		before := b.tree(m, link)
		if before.root.Kind != "mq" || before.root.Handle != 0 {
			b.t.Errorf("%v; want the kernel's mq", before.root)
		}
		if d := b.one(b.sync(m)); !d.Paced || d.Qdisc != "mq(3×fq)" {
			b.t.Errorf("exit device: %+v; want fq at three queues", d)
		}
		b.quietSync(m)
		b.must(m.Restore(), "restore")
		if diff := cmp.Diff(before, b.tree(m, link), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after restore):\n%s", diff)
		}
	})
}

func TestFqTowardsPods(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{Veths: true})
		defer m.Close()
		up, pod := b.uplink("up0", "192.0.2.2/24", "192.0.2.1"), b.uplink("veth1", "", "")
		before := b.tree(m, pod)
		r := b.sync(m, pod.Attrs().Index, 12345)
		if len(r.Veths) != 1 || !r.Veths[0].Paced || !isOurFq(b.tree(m, pod).root, vethBuckets) || !b.tree(m, up).ours() {
			b.t.Errorf("result %+v; want fq on the pod's device and on the uplink", r)
		}
		b.quietSyncVeth(m, pod.Attrs().Index)
		b.sync(m) // the pod is gone, its device not yet
		if diff := cmp.Diff(before, b.tree(m, pod), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

func (b *box) quietSyncVeth(m *Manager, index int) {
	b.t.Helper()
	before := b.tree(m, &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
	b.sync(m, index)
	if diff := cmp.Diff(before, b.tree(m, &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}), cmp.AllowUnexported(tree{})); diff != "" {
		b.t.Errorf("second sync (-before +after):\n%s", diff)
	}
}
