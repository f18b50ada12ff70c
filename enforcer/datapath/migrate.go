// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/kubepace/kubepace/bpf"
)

// earlier is what another version of kubepace left pinned: maps of another layout, read by the names of their fields.
type earlier struct {
	pins
	maps  map[string]*ebpf.Map
	types map[string]*btf.Struct // of the maps' values
	own   map[string]*btf.Struct // of ours
}

// migrate moves every pod of other layouts into ours: limit, clock and counters first, then each device gets our
// program in one step. Until that step the earlier program keeps the limit; flows are learned anew. What fails is
// left to the earlier program.
func (d *Datapath) migrate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pins.others() {
		if err := d.takeOver(p); err != nil {
			d.log.Error(err, "the maps of another version of kubepace could not be taken over; its program keeps their limits", "pins", p.dir())
			continue
		}
		d.log.Info("took over the limits of another version of kubepace", "pins", p.dir())
	}
}

func (d *Datapath) takeOver(p pins) error {
	old, err := openEarlier(p, d.types,
		bpf.EgressMapKubepaceDevices, bpf.EgressMapKubepaceLimits, bpf.EgressMapKubepacePods, bpf.EgressMapKubepaceIdentities)
	if err != nil {
		return err
	}
	defer closeMaps(old.maps)
	devices, err := old.devices()
	if err != nil {
		return err
	}
	var errs []error
	var slot uint32
	id := make([]byte, old.maps[bpf.EgressMapKubepaceIdentities].ValueSize())
	it := old.maps[bpf.EgressMapKubepaceIdentities].Iterate()
	for it.Next(&slot, &id) {
		errs = append(errs, d.takePod(old, slot, id, devices[slot]))
	}
	if err := errors.Join(append(errs, it.Err())...); err != nil {
		return err
	}
	return p.removeLayout()
}

func (d *Datapath) takePod(old *earlier, slot uint32, idBytes []byte, devices map[int]bpf.EgressKubepaceDevice) error {
	var id bpf.EgressKubepaceIdentity
	if err := old.decode(bpf.EgressMapKubepaceIdentities, idBytes, &id); err != nil {
		return err
	}
	pod := podOf(id)
	known := d.pods[pod.UID] != nil // by an agent that died in the middle of this: our clock is the one that runs
	e, err := d.ensureEntry(pod)
	if err != nil {
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	var before bpf.EgressPacePod
	if !known {
		if before, err = d.takeClock(old, slot, e); err != nil {
			return fmt.Errorf("pod %s: %w", pod, err)
		}
	}
	for ifindex, record := range devices {
		record.Slot = e.slot
		if err := d.takeDevice(old, e, ifindex, record); err != nil {
			return fmt.Errorf("pod %s: %w", pod, err)
		}
	}
	if known {
		return nil
	}
	return d.settleClock(old, slot, e, before)
}

// takeClock writes the pod's limit and clock into our maps, and returns what it wrote.
func (d *Datapath) takeClock(old *earlier, slot uint32, e *entry) (pod bpf.EgressPacePod, err error) {
	var limit bpf.EgressPaceLimit
	if err := old.lookup(bpf.EgressMapKubepaceLimits, slot, &limit, 0); err != nil {
		return pod, err
	}
	if err := old.lookup(bpf.EgressMapKubepacePods, slot, &pod, ebpf.LookupLock); err != nil {
		return pod, err
	}
	if err := d.objects.KubepacePods.Put(e.slot, pod); err != nil {
		return pod, fmt.Errorf("write clock: %w", err)
	}
	e.limit = bpf.EgressPaceLimit{}
	if limit.RateBps > 0 {
		e.limit = paceLimitBps(limit.RateBps, Mode(limit.Mode))
	}
	if err := d.objects.KubepaceLimits.Put(e.slot, e.limit); err != nil {
		return pod, fmt.Errorf("write limit: %w", err)
	}
	return pod, nil
}

// settleClock charges our clock with what the earlier program let pass between takeClock and the moment when the last
// device got our program.
func (d *Datapath) settleClock(old *earlier, slot uint32, e *entry, before bpf.EgressPacePod) error {
	var after bpf.EgressPacePod
	if err := old.lookup(bpf.EgressMapKubepacePods, slot, &after, ebpf.LookupLock); err != nil {
		return err
	}
	missed := after.Bytes - before.Bytes
	if missed == 0 || e.limit.RateBps == 0 {
		return nil
	}
	var now bpf.EgressPacePod
	if err := d.objects.KubepacePods.LookupWithFlags(e.slot, &now, ebpf.LookupLock); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	now.ClockNs = max(now.ClockNs, monotonicNs()) + costNs(missed, e.limit.RateBps)
	now.Bytes += missed
	now.Packets += after.Packets - before.Packets
	if err := d.objects.KubepacePods.Update(e.slot, now, ebpf.UpdateExist|ebpf.UpdateLock); err != nil {
		return fmt.Errorf("settle clock: %w", err)
	}
	return nil
}

// takeDevice gives a device that the earlier program holds ours. A device that it does not hold any more is left out;
// Set attaches it anew.
func (d *Datapath) takeDevice(old *earlier, e *entry, ifindex int, record bpf.EgressKubepaceDevice) error {
	hook := hookOf(old.pins, ifindex)
	if hook == HookNone {
		return nil
	}
	if err := d.objects.KubepaceDevices.Put(uint32(ifindex), record); err != nil {
		return fmt.Errorf("write device %d: %w", ifindex, err)
	}
	if hook == HookTCX {
		if err := moveLink(old.link(ifindex), d.pins.link(ifindex), d.objects.KubepaceEgress); err != nil {
			return err
		}
	} else if _, err := attachClsact(d.objects.KubepaceEgress, ifindex); err != nil {
		return err
	}
	e.devices[ifindex] = record
	return nil
}

// moveLink puts another program into a pinned link, in one step, and moves the pin.
func moveLink(from, to string, program *ebpf.Program) error {
	l, err := link.LoadPinnedLink(from, nil)
	if err != nil {
		return fmt.Errorf("load pinned link %s: %w", from, err)
	}
	defer l.Close()
	if err := l.Update(program); err != nil {
		return fmt.Errorf("update link %s: %w", from, err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move pinned link: %w", err)
	}
	return nil
}

// valueTypes are the structs that the maps hold, by the maps' names. Names of structs are part of the layout.
func valueTypes() map[string]string {
	return map[string]string{
		bpf.EgressMapKubepaceDevices: "kubepace_device", bpf.EgressMapKubepaceLimits: "pace_limit",
		bpf.EgressMapKubepacePods: "pace_pod", bpf.EgressMapKubepaceIdentities: "kubepace_identity",
	}
}

// typesOf are the values' types of a program's maps, by the maps' names.
func typesOf(spec *ebpf.CollectionSpec) (map[string]*btf.Struct, error) {
	types := map[string]*btf.Struct{}
	for name := range valueTypes() {
		t, ok := btf.UnderlyingType(spec.Maps[name].Value).(*btf.Struct)
		if !ok {
			return nil, fmt.Errorf("map %s: its values are no struct", name)
		}
		types[name] = t
	}
	return types, nil
}

// openEarlier opens some of the pinned maps of a layout.
func openEarlier(p pins, own map[string]*btf.Struct, names ...string) (old *earlier, err error) {
	old = &earlier{pins: p, maps: map[string]*ebpf.Map{}, types: map[string]*btf.Struct{}, own: own}
	defer func() {
		if err != nil {
			closeMaps(old.maps)
		}
	}()
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(p.file(name), nil)
		if err != nil {
			return old, fmt.Errorf("load pinned map %s: %w", p.file(name), err)
		}
		old.maps[name] = m
		if old.types[name], err = valueType(m, valueTypes()[name]); err != nil {
			return old, fmt.Errorf("%s: %w", p.file(name), err)
		}
	}
	return old, nil
}

// valueType is what the kernel keeps of the type of a map's values.
func valueType(m *ebpf.Map, name string) (*btf.Struct, error) {
	info, err := m.Info()
	if err != nil {
		return nil, fmt.Errorf("get info: %w", err)
	}
	id, ok := info.BTFID()
	if !ok {
		return nil, errors.New("the map has no type information")
	}
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		return nil, fmt.Errorf("get type information: %w", err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read type information: %w", err)
	}
	var t *btf.Struct
	if err := spec.TypeByName(name, &t); err != nil {
		return nil, fmt.Errorf("type information: %w", err)
	}
	return t, nil
}

// devices are the earlier devices by slot and ifindex.
func (old *earlier) devices() (map[uint32]map[int]bpf.EgressKubepaceDevice, error) {
	out := map[uint32]map[int]bpf.EgressKubepaceDevice{}
	var ifindex uint32
	m := old.maps[bpf.EgressMapKubepaceDevices]
	value := make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&ifindex, &value) {
		var record bpf.EgressKubepaceDevice
		if err := old.decode(bpf.EgressMapKubepaceDevices, value, &record); err != nil {
			return nil, err
		}
		if out[record.Slot] == nil {
			out[record.Slot] = map[int]bpf.EgressKubepaceDevice{}
		}
		out[record.Slot][int(ifindex)] = record
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list devices of %s: %w", old.dir(), err)
	}
	return out, nil
}

func (old *earlier) lookup(name string, slot uint32, to any, flags ebpf.MapLookupFlags) error {
	value := make([]byte, old.maps[name].ValueSize())
	if err := old.maps[name].LookupWithFlags(slot, &value, flags); err != nil {
		return fmt.Errorf("read slot %d of %s: %w", slot, old.file(name), err)
	}
	return old.decode(name, value, to)
}

// decode fills one of our structs with the fields that the earlier one has under the same names; the others are zero.
func (old *earlier) decode(name string, value []byte, to any) error {
	own := old.own[name]
	size, err := btf.Sizeof(own)
	if err != nil {
		return fmt.Errorf("size of %s: %w", own.Name, err)
	}
	data := make([]byte, size)
	copyFields(own, data, old.types[name], value)
	if _, err := binary.Decode(data, binary.NativeEndian, to); err != nil {
		return fmt.Errorf("decode %s: %w", own.Name, err)
	}
	return nil
}
