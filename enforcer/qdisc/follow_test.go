// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"errors"
	"net"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/netlab"
)

// The tests of this file follow exit devices as they come, go and change. They set a real fq, and need devices that
// not every kernel has: they run in the virtual machines.

func (b *box) wantOurs(m *Manager, want map[string]bool) {
	b.t.Helper()
	for name, ours := range want {
		if t := b.tree(m, b.link(name)); t.ours() != ours {
			b.t.Errorf("%s has %s (ours: %v); want ours: %v", name, t.describe(), t.ours(), ours)
		}
	}
}

func (b *box) addLink(link netlink.Link) netlink.Link {
	b.t.Helper()
	name := link.Attrs().Name
	b.must(netlink.LinkAdd(link), "add "+name)
	got := b.link(name)
	b.must(netlink.LinkSetUp(got), "set up "+name)
	return got
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func (b *box) address(link netlink.Link, cidr string) {
	b.t.Helper()
	addr, err := netlink.ParseAddr(cidr)
	b.must(err, "parse "+cidr)
	b.must(netlink.AddrAdd(link, addr), "add address")
}

// TestFqFollowsVLANBondAndBridge stacks them: the default route leaves by a VLAN of a bond, and a subnet by a bridge that
// has a second bond as its port.
func TestFqFollowsVLANBondAndBridge(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		bond := b.addLink(netlink.NewLinkBond(named("bond0")))
		for _, name := range []string{"up0", "up1", "up2"} {
			b.uplink(name, "", "")
		}
		before := b.tree(m, b.link("up0"))
		b.join("up0", bond)
		b.join("up1", bond)
		vlan := b.addLink(&netlink.Vlan{LinkAttrs: func() netlink.LinkAttrs {
			a := named("bond0.7")
			a.ParentIndex = bond.Attrs().Index
			return a
		}(), VlanId: 7})
		b.address(vlan, "192.0.2.2/24")
		b.must(netlink.RouteAdd(&netlink.Route{LinkIndex: vlan.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}), "add default route")
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": true, "up1": true, "up2": false, "bond0": false, "bond0.7": false})

		b.must(netlink.LinkSetNoMaster(b.link("up0")), "take up0 out of the bond") // which sets it down
		b.must(netlink.LinkSetUp(b.link("up0")), "set up up0")
		b.join("up2", bond)
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": false, "up1": true, "up2": true})
		if diff := cmp.Diff(before, b.tree(m, b.link("up0")), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("what left the bond (-before +after):\n%s", diff)
		}

		second := b.addLink(netlink.NewLinkBond(named("bond1")))
		b.join("up0", second)
		bridge := b.addLink(&netlink.Bridge{LinkAttrs: named("br0")})
		b.address(bridge, "198.51.100.2/24")
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": false})
		b.must(netlink.LinkSetMaster(second, bridge), "add bond1 to br0")
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": true, "up1": true, "up2": true})
		b.must(netlink.LinkSetNoMaster(second), "take bond1 out of br0")
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": false, "up1": true, "up2": true})
		b.must(netlink.LinkDel(vlan), "delete the VLAN")
		b.sync(m)
		b.wantOurs(m, map[string]bool{"up0": false, "up1": false, "up2": false})
		if records, err := loadRecords(b.dir); err != nil || len(records) != 0 {
			b.t.Errorf("records of devices that are exits no more: %v, %v", records, err)
		}
	})
}

func (b *box) link(name string) netlink.Link {
	b.t.Helper()
	link, err := netlink.LinkByName(name)
	b.must(err, "find "+name)
	return link
}

// join makes a device a slave; a bond takes it while it is down.
func (b *box) join(name string, bond netlink.Link) {
	b.t.Helper()
	b.must(netlink.LinkSetDown(b.link(name)), "set down "+name)
	b.must(netlink.LinkSetMaster(b.link(name), bond), "add to bond "+name)
	b.must(netlink.LinkSetUp(b.link(name)), "set up "+name)
}

// TestFqFollowsQueues: the number of queues changes under our mq (ethtool -L), and so do the leaves.
func TestFqFollowsQueues(t *testing.T) {
	needFq(t)
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		attrs := named("up0")
		attrs.NumTxQueues, attrs.NumRxQueues = 4, 4
		up := b.addLink(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0", PeerNumTxQueues: 4, PeerNumRxQueues: 4,
			PeerNamespace: netlink.NsFd(b.outside)})
		b.address(up, "192.0.2.2/24")
		b.must(netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}), "add default route")
		if err := setChannels("up0", 4); errors.Is(err, unix.EOPNOTSUPP) {
			t.Logf("left out: this kernel's veth keeps its queues: %v", err)
			return
		}
		typed := entry{Index: up.Attrs().Index, Kind: "mq", Handle: 0x230000, Parent: root}
		b.must(m.conn.put(typed), "put mq")
		b.must(m.conn.put(entry{Index: typed.Index, Kind: "fq", Handle: 0x240000, Parent: 0x230004}), "put fq at the fourth queue")
		before := b.tree(m, up)
		for _, queues := range []int{4, 2, 4, 3} {
			b.must(setChannels("up0", queues), "set channels")
			// The kernel may go on listing what is at a queue that is not used now.
			if d, now := b.one(b.sync(m)), b.tree(m, up); !d.Paced || !now.ours() || len(now.below) < queues {
				b.t.Errorf("%d queues: %+v, %d leaves; want fq at each", queues, d, len(now.below))
			}
			b.quietSync(m)
		}
		b.must(m.Restore(), "restore with a queue less")
		if now := b.tree(m, up); now.root.Handle != 0x230000 || len(now.below) != 3 {
			b.t.Errorf("restored %+v; want the administrator's mq with three queues", now)
		}
		b.must(setChannels("up0", 4), "set channels")
		b.must(m.conn.put(entry{Index: typed.Index, Kind: "fq", Handle: 0x240000, Parent: 0x230004}), "put fq at the fourth queue again")
		b.sync(m)
		b.must(m.Restore(), "restore")
		if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after restore):\n%s", diff)
		}
	})
}

// setChannels is `ethtool -L DEVICE tx N rx N`.
func setChannels(device string, n int) error {
	const get, set = 0x3c, 0x3d // ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS
	type channels struct {
		command                          uint32
		maxRx, maxTx, maxOther, maxTotal uint32
		rx, tx, other, combined          uint32
	}
	c := channels{command: get}
	if err := netlab.Ethtool(device, unsafe.Pointer(&c)); err != nil {
		return err
	}
	c.command, c.rx, c.tx = set, uint32(n), uint32(n)
	return netlab.Ethtool(device, unsafe.Pointer(&c))
}

// TestFqRestoresOptions: an administrator's own parameters come back, those that the netlink package does not know
// as well.
func TestFqRestoresOptions(t *testing.T) {
	needFq(t)
	options := func(pairs ...uint32) []byte {
		var out []byte
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, nl.NewRtAttr(int(pairs[i]), nl.Uint32Attr(pairs[i+1])).Serialize()...)
		}
		return out
	}
	for name, typed := range map[string]entry{
		"fq": {Kind: "fq", Options: options(nl.TCA_FQ_PLIMIT, 5000, nl.TCA_FQ_FLOW_PLIMIT, 50, nl.TCA_FQ_QUANTUM, 3000,
			nl.TCA_FQ_INITIAL_QUANTUM, 9000, nl.TCA_FQ_FLOW_DEFAULT_RATE, 0, nl.TCA_FQ_BUCKETS_LOG, 8, nl.TCA_FQ_ORPHAN_MASK, 2047,
			nl.TCA_FQ_FLOW_REFILL_DELAY, 20000, nl.TCA_FQ_LOW_RATE_THRESHOLD, 100000)},
		"fq_codel": {Kind: "fq_codel", Options: options(nl.TCA_FQ_CODEL_TARGET, 7000, nl.TCA_FQ_CODEL_LIMIT, 500, nl.TCA_FQ_CODEL_INTERVAL, 50000,
			nl.TCA_FQ_CODEL_ECN, 0, nl.TCA_FQ_CODEL_FLOWS, 64, nl.TCA_FQ_CODEL_QUANTUM, 300, nl.TCA_FQ_CODEL_CE_THRESHOLD, 3000)},
	} {
		t.Run(name, func(t *testing.T) {
			inBox(t, func(b *box) {
				m := b.manager(Options{})
				defer m.Close()
				up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
				typed.Index, typed.Handle, typed.Parent = up.Attrs().Index, 0x230000, root
				b.must(m.conn.put(typed), "put the administrator's")
				before := b.tree(m, up)
				if d := b.one(b.sync(m)); !d.Paced {
					b.t.Errorf("exit device: %+v; want paced", d)
				}
				b.must(m.Restore(), "restore")
				if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
					b.t.Errorf("(-before +after restore):\n%s", diff)
				}
			})
		})
	}
}
