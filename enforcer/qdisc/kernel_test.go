// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// one returns the only exit device.
func (b *box) one(r Result) Device {
	b.t.Helper()
	if len(r.Exits) != 1 {
		b.t.Errorf("exit devices: %+v; want one", r.Exits)
		return Device{}
	}
	return r.Exits[0]
}

func TestKernelWithoutFq(t *testing.T) {
	inBox(t, func(b *box) {
		m := b.manager(Options{Veths: true})
		defer m.Close()
		m.probe = func() error { return errNoFq } // the real one is in TestProbe
		up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		before := b.tree(m, up)
		r, err := m.Sync(nil)
		b.must(err, "sync")
		var missing *MissingError
		if !errors.As(r.Fq, &missing) {
			b.t.Errorf("Result.Fq = %v; want *MissingError", r.Fq)
		}
		want := Device{Index: up.Attrs().Index, Name: "up0", Qdisc: "noqueue", Reason: "needs CONFIG_NET_SCH_FQ (sch_fq)"}
		if diff := cmp.Diff(want, b.one(r)); diff != "" {
			b.t.Errorf("exit device (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("qdisc was touched (-before +after):\n%s", diff)
		}
		if _, err := os.Stat(filepath.Join(b.dir, recordName)); !errors.Is(err, os.ErrNotExist) {
			b.t.Errorf("record of nothing: %v", err)
		}
	})
}

func TestProbe(t *testing.T) {
	inBox(t, func(b *box) {
		err := Probe()
		var missing *MissingError
		if err != nil && !errors.As(err, &missing) {
			b.t.Errorf("Probe: %v; want nil or *MissingError", err)
		}
		// The probe's word is the kernel's: setting fq for real agrees with it.
		m := b.manager(Options{})
		defer m.Close()
		up := b.uplink("up0", "", "")
		set := m.conn.put(tree{index: up.Attrs().Index}.newRoot(exitBuckets))
		if (set == nil) != (err == nil) {
			b.t.Errorf("probe says %v, setting fq says %v", err, set)
		}
	})
}

func TestAdministratorsQdiscStays(t *testing.T) {
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		m.probe = func() error { return nil }
		up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		b.must(netlink.QdiscAdd(netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: up.Attrs().Index, Handle: 0x10000, Parent: root})), "add htb")
		r, err := m.Sync(nil)
		b.must(err, "sync")
		if d := b.one(r); d.Qdisc != "htb" || d.Paced || d.Reason != "qdisc htb 1: was set by an administrator and stays" {
			b.t.Errorf("exit device: %+v; want htb left alone, with the reason", d)
		}
		b.must(m.Restore(), "restore")
		if now := b.tree(m, up); now.root.Kind != "htb" || now.root.Handle != 0x10000 {
			b.t.Errorf("root is %v; want htb 1:", now.root)
		}
	})
}

// TestRestore needs no fq: what is restored does not depend on what we had put there, only on whose handle it has.
func TestRestore(t *testing.T) {
	for name, before := range map[string]entry{
		"kernel's own":    {},
		"typed by a user": {Kind: "pfifo_fast", Handle: 0x120000, Parent: root},
		"typed mq":        {Kind: "mq", Handle: 0x130000, Parent: root},
	} {
		t.Run(name, func(t *testing.T) {
			inBox(t, func(b *box) {
				m := b.manager(Options{})
				defer m.Close()
				up, other := b.uplink("up0", "", ""), b.uplink("up1", "", "")
				if before.Kind != "" {
					before.Index = up.Attrs().Index
					b.must(m.conn.put(before), "put the user's")
				}
				first, elsewhere := b.tree(m, up), b.tree(m, other)
				b.must(saveRecords(b.dir, map[int]record{first.index: newRecord("up0", first), 999: {Index: 999, Name: "gone0"}}), "record")
				b.must(m.conn.put(entry{Index: first.index, Kind: "pfifo_fast", Handle: ourHandle, Parent: root}), "put ours")
				if !b.tree(m, up).ours() {
					b.t.Error("our handle is not recognized")
				}
				b.must(m.Restore(), "restore")
				for what, pair := range map[string][2]tree{"up0": {first, b.tree(m, up)}, "up1": {elsewhere, b.tree(m, other)}} {
					if diff := cmp.Diff(pair[0], pair[1], cmp.AllowUnexported(tree{})); diff != "" {
						b.t.Errorf("%s (-before +after):\n%s", what, diff)
					}
				}
				if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 0 {
					b.t.Errorf("run folder holds %v, %v; want nothing", entries, err)
				}
			})
		})
	}
}

func TestRestoreWithoutRecord(t *testing.T) {
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		up := b.uplink("up0", "", "")
		before := b.tree(m, up)
		b.must(m.conn.put(entry{Index: before.index, Kind: "pfifo_fast", Handle: ourHandle, Parent: root}), "put ours")
		b.must(os.WriteFile(filepath.Join(b.dir, recordName), []byte("{broken"), 0o600), "break the record")
		b.must(m.Restore(), "restore")
		if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

func TestInspectChangesNothing(t *testing.T) {
	inBox(t, func(b *box) {
		m := b.manager(Options{})
		defer m.Close()
		up := b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		before := b.tree(m, up)
		m.probe = func() error { return nil }
		r, err := m.Inspect(nil)
		b.must(err, "inspect")
		if d := b.one(r); d.Name != "up0" || d.Paced || d.Reason != "fq is not set yet" {
			b.t.Errorf("exit device: %+v", d)
		}
		if diff := cmp.Diff(before, b.tree(m, up), cmp.AllowUnexported(tree{})); diff != "" {
			b.t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

func TestChosenExitDevices(t *testing.T) {
	inBox(t, func(b *box) {
		b.uplink("up0", "192.0.2.2/24", "192.0.2.1")
		b.uplink("up1", "", "")
		m := b.manager(Options{Exits: []string{"up1", "none0"}})
		defer m.Close()
		m.probe = func() error { return errNoFq }
		r, err := m.Sync(nil)
		if err == nil {
			b.t.Error("no error for an exit device that does not exist")
		}
		if d := b.one(r); d.Name != "up1" {
			b.t.Errorf("exit device: %+v; want up1 alone", d)
		}
	})
}
