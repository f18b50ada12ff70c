// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Restore puts back what was on every device that we set, and removes the record. Devices that somebody changed since
// are left as they are. It works without the record too: our root qdiscs are known by their handle, and deleting one
// brings the kernel's default back.
func (m *Manager) Restore() error {
	v, err := m.look(nil)
	if err != nil {
		return err
	}
	records, err := loadRecords(m.opts.RunDir)
	if err != nil {
		m.opts.Log.Error(err, "record of former qdiscs unreadable; restoring the kernel's defaults")
		records = map[int]record{}
	}
	if err := m.restoreOthers(v, records, nil); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(m.opts.RunDir, recordName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of qdiscs: %w", err)
	}
	return nil
}

// restoreOthers restores every device but the wanted ones, and forgets the records of devices that are gone.
func (m *Manager) restoreOthers(v view, records map[int]record, wanted map[int]bool) error {
	var errs []error
	changed := false
	for index, t := range v.trees {
		if wanted[index] || !t.ours() {
			continue
		}
		name := v.node.links[index].Attrs().Name
		if err := m.restore(t, records[index]); err != nil {
			errs = append(errs, fmt.Errorf("restore qdisc of %s: %w", name, err))
			continue
		}
		m.opts.Log.Info("qdisc restored", "device", name)
		delete(records, index)
		changed = true
	}
	for index := range records {
		if t, ok := v.trees[index]; !ok || (!wanted[index] && !t.ours()) {
			delete(records, index)
			changed = true
		}
	}
	if changed {
		errs = append(errs, saveRecords(m.opts.RunDir, records))
	}
	return errors.Join(errs...)
}

func (m *Manager) restore(now tree, before record) error {
	if before.madeByKernel() {
		return m.conn.removeRoot(now.index)
	}
	root := before.Root.settable()
	root.Index = now.index
	if err := m.conn.put(root); err != nil {
		return err
	}
	made, err := m.reload(now.index)
	if err != nil {
		return err
	}
	before.Below = made.queuesOf(before.Below)
	for _, leaf := range before.Below {
		if leaf.Handle == 0 {
			continue // made by the kernel below an administrator's mq, and made again with it
		}
		leaf = leaf.settable()
		leaf.Index = now.index
		if err := m.conn.put(leaf); err != nil {
			return err
		}
	}
	after, err := m.reload(now.index)
	if err != nil {
		return err
	}
	return before.compare(after)
}

// queuesOf leaves out what stood at queues that the device has no more (ethtool -L). Where it has more now, the kernel
// gives the new ones its default.
func (t tree) queuesOf(below []entry) []entry {
	there := map[uint32]bool{}
	for _, e := range t.below {
		there[e.Parent] = true
	}
	var list []entry
	for _, e := range below {
		if there[e.Parent] {
			list = append(list, e)
		}
	}
	return list
}

// compare reports the first difference between what was recorded and what is there.
func (r record) compare(now tree) error {
	have := map[uint32]entry{netlink.HANDLE_ROOT: now.root}
	for _, e := range now.below {
		have[e.Parent] = e
	}
	for _, want := range append([]entry{r.Root}, r.Below...) {
		got := have[want.Parent]
		if got.Kind != want.Kind || (want.Handle != 0 && got.Handle != want.Handle) || !bytes.Equal(got.Options, want.Options) {
			return fmt.Errorf("kernel shows %s where %s was", got, want)
		}
	}
	return nil
}

// settable returns e with options that, set, will be dumped as e's. The kernel keeps fq_codel's times in units of
// 1024 ns and rounds down both ways: what it dumps as 4999 us became that by setting 5000, and would become 4998.
// One microsecond more is always right.
func (e entry) settable() entry {
	if e.Kind != "fq_codel" {
		return e
	}
	attrs, err := nl.ParseRouteAttr(e.Options)
	if err != nil {
		return e
	}
	e.Options = nil
	for _, a := range attrs {
		kind := int(a.Attr.Type & nl.NLA_TYPE_MASK)
		switch kind {
		case nl.TCA_FQ_CODEL_TARGET, nl.TCA_FQ_CODEL_INTERVAL, nl.TCA_FQ_CODEL_CE_THRESHOLD:
			if len(a.Value) == 4 {
				a.Value = nl.Uint32Attr(binary.NativeEndian.Uint32(a.Value) + 1)
			}
		}
		e.Options = append(e.Options, nl.NewRtAttr(kind, a.Value).Serialize()...)
	}
	return e
}
