// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/kubepace/kubepace/bpf"
)

const rodata = ".rodata"

// objects are the program and the maps, without the compiler's own.
type objects struct {
	bpf.EgressPrograms
	bpf.EgressMaps
}

// Close lets go of the file descriptors.
func (o *objects) Close() error { return errors.Join(o.EgressPrograms.Close(), o.EgressMaps.Close()) }

// mapNames are the pinned maps, by their names in the program.
func mapNames() []string {
	return []string{
		bpf.EgressMapKubepaceDevices, bpf.EgressMapKubepaceLimits, bpf.EgressMapKubepacePods,
		bpf.EgressMapKubepaceFlows, bpf.EgressMapKubepaceIdentities,
	}
}

// load puts the program into the kernel, on the maps that are pinned already, and pins what is not.
func (d *Datapath) load() error {
	spec, err := d.spec()
	if err != nil {
		return err
	}
	if d.pins.layout, err = layoutOf(spec); err != nil {
		return err
	}
	if err := d.pins.create(); err != nil {
		return err
	}
	if err := d.setHashSeed(spec); err != nil {
		return err
	}
	replacements, err := d.pinnedMaps()
	if err != nil {
		return err
	}
	defer closeMaps(replacements)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		return fmt.Errorf("load the egress program: %w", err)
	}
	defer coll.Close()
	if err := d.pin(coll, replacements); err != nil {
		return err
	}
	d.objects = new(objects)
	if err := errors.Join(coll.Assign(&d.objects.EgressPrograms), coll.Assign(&d.objects.EgressMaps)); err != nil {
		return fmt.Errorf("assign the egress program's objects: %w", err)
	}
	d.inner = spec.Maps[bpf.EgressMapKubepaceFlows].InnerMap
	info, err := d.objects.KubepaceEgress.Info()
	if err != nil {
		return fmt.Errorf("get info of the egress program: %w", err)
	}
	d.program, _ = info.ID()
	d.types, err = typesOf(spec)
	return err
}

// spec is the compiled program with this kernel's settings.
func (d *Datapath) spec() (*ebpf.CollectionSpec, error) {
	spec, err := d.loadSpec()
	if err != nil {
		return nil, fmt.Errorf("read the egress program: %w", err)
	}
	delete(spec.Maps, ".bss") // holds a type for the compiler, no data
	delete(spec.Variables, bpf.EgressVarKubepaceUnused)
	canStamp := uint32(0)
	if d.features.Stamp {
		canStamp = 1
	}
	if err := spec.Variables[bpf.EgressVarCanStamp].Set(canStamp); err != nil {
		return nil, fmt.Errorf("set can_stamp: %w", err)
	}
	return spec, nil
}

func (d *Datapath) setHashSeed(spec *ebpf.CollectionSpec) error {
	seed, err := d.hashSeed(spec)
	if err != nil {
		return err
	}
	if err := spec.Variables[bpf.EgressVarHashSeed].Set(seed); err != nil {
		return fmt.Errorf("set the hash seed: %w", err)
	}
	return nil
}

// hashSeed is the pinned program's, so that its flows stay where they are; else a new one.
func (d *Datapath) hashSeed(spec *ebpf.CollectionSpec) (uint64, error) {
	m, err := ebpf.LoadPinnedMap(d.pins.file(pinRodata), nil)
	if errors.Is(err, fs.ErrNotExist) {
		var seed [8]byte
		if _, err := rand.Read(seed[:]); err != nil {
			return 0, fmt.Errorf("draw a hash seed: %w", err)
		}
		return binary.LittleEndian.Uint64(seed[:]), nil
	}
	if err != nil {
		return 0, fmt.Errorf("load pinned settings: %w", err)
	}
	defer m.Close()
	data, err := m.LookupBytes(uint32(0))
	if err != nil {
		return 0, fmt.Errorf("read pinned settings: %w", err)
	}
	offset := spec.Variables[bpf.EgressVarHashSeed].Offset
	if uint64(len(data)) < uint64(offset)+8 {
		return 0, fmt.Errorf("pinned settings have %d bytes, too few", len(data))
	}
	return binary.LittleEndian.Uint64(data[offset:]), nil
}

func (d *Datapath) pinnedMaps() (map[string]*ebpf.Map, error) {
	out := map[string]*ebpf.Map{}
	for _, name := range mapNames() {
		m, err := ebpf.LoadPinnedMap(d.pins.file(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeMaps(out)
			return nil, fmt.Errorf("load pinned map %s: %w", name, err)
		}
		out[name] = m
	}
	return out, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// pin keeps the maps, the settings and the program beyond this process. The program's pin is the last: it says that
// the rest is there.
func (d *Datapath) pin(coll *ebpf.Collection, have map[string]*ebpf.Map) error {
	for _, name := range mapNames() {
		if have[name] != nil {
			continue
		}
		if err := coll.Maps[name].Pin(d.pins.file(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for _, name := range []string{pinRodata, pinProgram} {
		if err := os.Remove(d.pins.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("replace pin: %w", err)
		}
	}
	if err := coll.Maps[rodata].Pin(d.pins.file(pinRodata)); err != nil {
		return fmt.Errorf("pin settings: %w", err)
	}
	if err := coll.Programs[bpf.EgressProgKubepaceEgress].Pin(d.pins.file(pinProgram)); err != nil {
		return fmt.Errorf("pin the program: %w", err)
	}
	return nil
}

// adopt rebuilds the agent's knowledge from the maps and gives every device the new program. A device that is gone
// loses its entry.
func (d *Datapath) adopt() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	bySlot := map[uint32]*entry{}
	slots, identities, err := entries[bpf.EgressKubepaceIdentity](d.objects.KubepaceIdentities)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for i, slot := range slots {
		e := &entry{slot: slot, identity: podOf(identities[i]), devices: map[int]bpf.EgressKubepaceDevice{}}
		if err := d.objects.KubepaceLimits.Lookup(slot, &e.limit); err != nil {
			return fmt.Errorf("read limit of slot %d: %w", slot, err)
		}
		bySlot[slot], d.pods[e.identity.UID], d.slots[slot] = e, e, true
	}
	devices, err := readDevices(d.objects.KubepaceDevices)
	if err != nil {
		return err
	}
	for ifindex, record := range devices {
		e := bySlot[record.Slot]
		if e == nil {
			e = &entry{devices: map[int]bpf.EgressKubepaceDevice{}}
		}
		e.devices[ifindex] = record
		if err := d.adoptDevice(e, ifindex); err != nil {
			return err
		}
	}
	return nil
}

// adoptDevice gives a device that our program still holds the new one. Where it does not, the device is gone (its
// number may be another's by now) or somebody took the program off: the entry goes, and the next Set attaches anew.
func (d *Datapath) adoptDevice(e *entry, ifindex int) error {
	if e.identity.UID == "" || hookOf(d.pins, ifindex) == HookNone {
		d.log.Info("collecting a device without pod or program", "pod", e.identity.String(), "ifindex", ifindex)
		return d.dropDevice(e, ifindex)
	}
	if _, err := attach(d.pins, d.objects.KubepaceEgress, ifindex, d.opts.clsact); err != nil {
		// The earlier program is still there and keeps the limit.
		d.log.Error(err, "keeping the earlier program", "pod", e.identity.String(), "ifindex", ifindex)
		return nil
	}
	d.log.V(1).Info("adopted", "pod", e.identity.String(), "ifindex", ifindex)
	return nil
}

// Cleanup removes every limit, link, filter and pin under bpffs. It needs no running agent; one that runs must be
// stopped first.
func Cleanup(bpffs string) error {
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	root := pins{root: bpffs}
	spec, err := bpf.LoadEgress()
	if err != nil {
		return fmt.Errorf("read the egress program: %w", err)
	}
	types, err := typesOf(spec)
	if err != nil {
		return err
	}
	for _, p := range root.all() {
		if err := p.detachAll(types); err != nil {
			return err
		}
	}
	return root.remove()
}

// detachAll takes the program off every device of one layout, which may be another version's.
func (p pins) detachAll(types map[string]*btf.Struct) error {
	old, err := openEarlier(p, types, bpf.EgressMapKubepaceDevices)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeMaps(old.maps)
	slots, err := old.devices()
	if err != nil {
		return err
	}
	for _, devices := range slots {
		for ifindex, record := range devices {
			own := record.Flags&flagOwn != 0
			if err := detach(p, ifindex, own); err != nil {
				return err
			}
		}
	}
	return nil
}
