// SPDX-License-Identifier: Apache-2.0

package cost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sync/errgroup"

	"github.com/kubepace/kubepace/tests/bench/result"
)

// Names of the pinned maps. All but the devices, which are by ifindex, are by slot.
const (
	mapDevices = "kubepace_devices"
	mapLimits  = "kubepace_limits"
	mapPods    = "kubepace_pods"
	mapFlows   = "kubepace_flows"
	mapNames   = "kubepace_identities"
)

// firstFaked is above every ifindex and slot of the test's own namespace.
const firstFaked = 1000

func (b *bench) pinned(name string) (*ebpf.Map, error) {
	found, err := filepath.Glob(filepath.Join(b.bpffs, "*", name))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("find the pinned map %s: %d found: %w", name, len(found), errors.Join(err, os.ErrNotExist))
	}
	m, err := ebpf.LoadPinnedMap(found[0], nil)
	if err != nil {
		return nil, fmt.Errorf("open the pinned map %s: %w", name, err)
	}
	return m, nil
}

// fill adds pods to the maps until there are so many: limited ones, with a device, a clock and a flow table each, copied
// from the pod under test. Their devices do not exist.
func (b *bench) fill(pods int) error {
	if err := b.dp.Set(limit(10e6)); err != nil {
		return fmt.Errorf("set the limit to copy: %w", err)
	}
	defer func() { _ = b.dp.Remove(uid) }()
	maps := map[string]*ebpf.Map{}
	for _, name := range []string{mapDevices, mapLimits, mapPods, mapFlows, mapNames} {
		m, err := b.pinned(name)
		if err != nil {
			return err
		}
		defer m.Close()
		maps[name] = m
	}
	device, err := maps[mapDevices].LookupBytes(uint32(loopback))
	if err != nil || device == nil {
		return fmt.Errorf("read the device to copy: %w", errors.Join(err, os.ErrNotExist))
	}
	slot := binary.NativeEndian.Uint32(device)
	spec, err := tableSpec(maps[mapFlows], slot)
	if err != nil {
		return err
	}
	copied := map[string][]byte{}
	for _, name := range []string{mapLimits, mapNames} {
		if copied[name], err = maps[name].LookupBytes(slot); err != nil {
			return fmt.Errorf("read %s to copy: %w", name, err)
		}
	}
	copied[mapNames][0] = 'x' // the UID is the first field: it must not be the tested pod's
	// The kernel waits for an RCU grace period after each table: many at once wait for the same one.
	var group errgroup.Group
	group.SetLimit(200)
	for i := uint32(firstFaked); i < firstFaked+uint32(pods)-1; i++ {
		group.Go(func() error {
			if err := fakePod(maps, copied, device, spec, i); err != nil {
				return fmt.Errorf("add pod %d: %w", i, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// tableSpec describes the flow table of a slot. Its type information is part of it: Linux 6.1 compares it before it
// takes a table into the outer map.
func tableSpec(flows *ebpf.Map, slot uint32) (*ebpf.MapSpec, error) {
	var table *ebpf.Map
	if err := flows.Lookup(slot, &table); err != nil {
		return nil, fmt.Errorf("find the flow table to copy: %w", err)
	}
	defer table.Close()
	spec := &ebpf.MapSpec{Type: table.Type(), KeySize: table.KeySize(), ValueSize: table.ValueSize(), MaxEntries: table.MaxEntries()}
	info, err := table.Info()
	if err != nil {
		return nil, fmt.Errorf("describe the flow table: %w", err)
	}
	id, ok := info.BTFID()
	if !ok {
		return spec, nil
	}
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open the flow table's type information: %w", err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read the flow table's type information: %w", err)
	}
	if spec.Value, err = types.AnyTypeByName("pace_bucket"); err != nil {
		return nil, fmt.Errorf("find the type of a bucket: %w", err)
	}
	spec.Key = &btf.Int{Name: "__u32", Size: table.KeySize()}
	return spec, nil
}

// fakePod adds pod number i, at slot i, with device i.
func fakePod(maps map[string]*ebpf.Map, copied map[string][]byte, device []byte, flows *ebpf.MapSpec, i uint32) error {
	table, err := ebpf.NewMap(flows)
	if err != nil {
		return fmt.Errorf("make a flow table: %w", err)
	}
	defer table.Close()
	device = bytes.Clone(device)
	binary.NativeEndian.PutUint32(device, i) // the slot is the first field
	return errors.Join(
		maps[mapFlows].Put(i, table), maps[mapLimits].Put(i, copied[mapLimits]),
		maps[mapNames].Put(i, copied[mapNames]), maps[mapDevices].Put(i, device))
}

// maps reports the kernel's own account of every map, and of one flow table.
func (b *bench) maps() ([]result.MapRow, error) {
	var rows []result.MapRow
	for _, name := range []string{mapDevices, mapLimits, mapPods, mapFlows, mapNames} {
		m, err := b.pinned(name)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		row, err := mapRow(name, m)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
		if name != mapFlows {
			continue
		}
		var table *ebpf.Map
		if err := m.Lookup(uint32(firstFaked), &table); err != nil {
			return nil, fmt.Errorf("find a flow table: %w", err)
		}
		defer table.Close()
		inner, err := mapRow("one pod's flow table", table)
		if err != nil {
			return nil, err
		}
		inner.PerPod = uint64(table.ValueSize()) * uint64(table.MaxEntries())
		rows = append(rows, inner)
	}
	return rows, nil
}

func mapRow(name string, m *ebpf.Map) (result.MapRow, error) {
	row := result.MapRow{Map: name, Entries: m.MaxEntries(), PerPod: uint64(m.ValueSize())}
	if m.Type() == ebpf.Hash {
		row.PerPod += uint64(m.KeySize())
	}
	if m.Type() == ebpf.ArrayOfMaps {
		row.PerPod = 8 // a pointer
	}
	info, err := m.Info()
	if err != nil {
		return row, fmt.Errorf("read the account of map %s: %w", name, err)
	}
	row.Bytes, _ = info.Memlock()
	return row, nil
}

var unspecified = netip.IPv4Unspecified()

// frame is a full Ethernet frame of one TCP segment with data.
func frame() []byte {
	const ethernet, ip = 14, 20
	b := make([]byte, frameBytes)
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00})
	h := b[ethernet:]
	h[0], h[8], h[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(h[2:], frameBytes-ethernet)
	copy(h[12:], []byte{10, 244, 0, 2, 192, 0, 2, 2})
	tcp := h[ip:]
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 5201)
	tcp[12], tcp[13] = 8<<4, 0x10
	return b
}
