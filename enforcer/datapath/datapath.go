// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/go-logr/logr"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/bpf"
)

// Datapath owns the kernel state under one bpffs folder. Its methods may be called from several goroutines in the network
// namespace of Open, Set and Remove of one pod, and of pods that share a device, by one at a time. At most one agent may own
// a folder.
type Datapath struct {
	opts     Options
	log      logr.Logger
	pins     pins
	features Features
	loadSpec func() (*ebpf.CollectionSpec, error)
	types    map[string]*btf.Struct // of the maps' values, by the maps' names
	heads    *heads                 // nil where the kernel has no such iterator
	changes  atomic.Uint64          // counted when each is done, with mu held

	mu       sync.Mutex
	objects  *objects
	inner    *ebpf.MapSpec
	pods     map[string]*entry // by UID
	slots    map[uint32]bool   // in use
	program  ebpf.ProgramID    // ours
	repairs  []Repair          // since Repairs was called
	first    map[int]bool      // devices, by ifindex, at whose hook our program was first when last looked at
	early    map[int]*early    // by ifindex
	spare    []uint32          // slots that are prepared and in use by nobody, sorted
	expected int               // pods that are known and have no device yet
}

// entry is what the agent knows of one pod's kernel state.
type entry struct {
	slot     uint32
	identity Pod
	limit    bpf.EgressPaceLimit
	devices  map[int]bpf.EgressKubepaceDevice // by ifindex
}

// Open loads the program and its maps, or adopts those that an earlier agent pinned, clocks included. Adopted
// devices get this agent's program without a gap, also where another version of kubepace had other maps. The error is a
// *LacksError where the kernel cannot do it at all.
func Open(opts Options) (*Datapath, error) {
	if opts.BPFFS == "" {
		opts.BPFFS = DefaultBPFFS
	}
	if opts.spec == nil {
		opts.spec = bpf.LoadEgress
	}
	features, err := Probe()
	if err != nil {
		return nil, explain(err)
	}
	d := &Datapath{
		opts: opts, log: opts.Log, pins: pins{root: opts.BPFFS}, features: features, loadSpec: opts.spec,
		pods: map[string]*entry{}, slots: map[uint32]bool{}, first: map[int]bool{}, early: map[int]*early{},
	}
	if err := d.load(); err != nil {
		return nil, explain(err)
	}
	if err := d.adopt(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.migrate()
	if d.polled() {
		d.changes.Store(1) // an agent that adopted has not looked yet
		if d.heads, err = openHeads(d.program); err != nil {
			d.log.Info("hooks are looked at one by one", "why", err.Error())
		}
	}
	return d, nil
}

// Features of the running kernel.
func (d *Datapath) Features() Features { return d.features }

// Close lets go of file descriptors; every limit stays in force.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects == nil {
		return nil
	}
	err := d.keepSpare(0)
	err = errors.Join(err, d.objects.Close(), d.heads.Close())
	d.objects = nil
	return errors.Join(err, d.letGo(func(*early) bool { return true }))
}

// Set brings one pod to the desired state: allocates its state, attaches the program to its devices, detaches it
// from devices it no longer has, and writes limit and mode without touching the clock. Idempotent; it also repairs
// an attachment that somebody removed.
func (d *Datapath) Set(limit Limit) error {
	if err := limit.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.changes.Add(1)
	e, err := d.ensureEntry(limit.Pod)
	if err != nil {
		return fmt.Errorf("pod %s: %w", limit.Pod, err)
	}
	// What the kernel holds counts, not what it was told.
	want, held := paceLimit(limit.Rate, limit.Mode), bpf.EgressPaceLimit{}
	if err := d.objects.KubepaceLimits.Lookup(e.slot, &held); err != nil || held != want {
		if err := d.objects.KubepaceLimits.Put(e.slot, want); err != nil {
			return fmt.Errorf("pod %s: write limit: %w", limit.Pod, err)
		}
	}
	e.limit = want
	if err := d.setDevices(e, limit.Devices); err != nil {
		return fmt.Errorf("pod %s: %w", limit.Pod, err)
	}
	return nil
}

func (l Limit) validate() error {
	switch {
	case l.Pod.UID == "":
		return fmt.Errorf("pod %s: no UID", l.Pod)
	case len(l.Pod.UID) > 63 || len(l.Pod.Namespace) > 63 || len(l.Pod.Name) > 253:
		return fmt.Errorf("pod %.320s: UID, namespace or name is longer than Kubernetes allows (63, 63, 253)", l.Pod)
	case !l.Rate.Valid():
		return fmt.Errorf("pod %s: %d is not a limit in bits per second", l.Pod, l.Rate)
	case len(l.Devices) == 0:
		return fmt.Errorf("pod %s: no device", l.Pod)
	}
	return nil
}

// ensureEntry finds or allocates a pod's state. The limit is written last by the caller, so a half-made pod is
// unlimited and unattached, and the next Set completes it.
func (d *Datapath) ensureEntry(pod Pod) (*entry, error) {
	e := d.pods[pod.UID]
	if e != nil && e.identity == pod {
		return e, nil
	}
	if e == nil {
		slot, err := d.allocate()
		if err != nil {
			return nil, err
		}
		e = &entry{slot: slot, devices: map[int]bpf.EgressKubepaceDevice{}}
	}
	if err := d.objects.KubepaceIdentities.Put(e.slot, identityOf(pod)); err != nil {
		if d.pods[pod.UID] == nil {
			delete(d.slots, e.slot) // it is prepared anew, table and all, for whoever is next
		}
		return nil, fmt.Errorf("write identity: %w", err)
	}
	e.identity = pod
	d.pods[pod.UID] = e
	return e, nil
}

// allocate takes a slot that is prepared, or prepares one.
func (d *Datapath) allocate() (uint32, error) {
	if len(d.spare) == 0 {
		return d.newSlot()
	}
	slot := d.spare[0]
	d.spare = d.spare[1:]
	return slot, nil
}

// newSlot takes the lowest free slot and prepares it: no limit, a clock at zero, an empty flow table.
func (d *Datapath) newSlot() (_ uint32, err error) {
	slot, size := uint32(0), d.objects.KubepaceLimits.MaxEntries()
	for d.slots[slot] {
		slot++
	}
	if slot >= size {
		return 0, fmt.Errorf("all %d slots are in use", size)
	}
	d.slots[slot] = true
	defer func() {
		if err != nil {
			delete(d.slots, slot)
		}
	}()
	if err := d.objects.KubepaceLimits.Put(slot, bpf.EgressPaceLimit{}); err != nil {
		return 0, fmt.Errorf("reset limit: %w", err)
	}
	if err := d.objects.KubepacePods.Put(slot, bpf.EgressPacePod{}); err != nil {
		return 0, fmt.Errorf("reset clock: %w", err)
	}
	table, err := ebpf.NewMap(d.inner)
	if err != nil {
		return 0, fmt.Errorf("create flow table: %w", err)
	}
	defer table.Close() // the outer map keeps it
	flows := d.objects.KubepaceFlows
	if err := d.unlocked(func() error { return flows.Put(slot, table) }); err != nil {
		return 0, fmt.Errorf("insert flow table: %w", err)
	}
	return slot, nil
}

// unlocked lets others work, pods of other callers among them, while f waits for the kernel: for its lock of all network
// configuration, or for all processors to have seen that a table came or went. Where many pods start at once their waits
// overlap. Called with mu held.
func (d *Datapath) unlocked(f func() error) error {
	d.mu.Unlock()
	defer d.mu.Lock()
	return f()
}

func (d *Datapath) setDevices(e *entry, devices []Device) error {
	var errs []error
	want := map[int]bool{}
	for _, dev := range devices {
		want[dev.Index] = true
		errs = append(errs, d.setDevice(e, dev.Index))
	}
	for ifindex := range e.devices {
		if !want[ifindex] {
			errs = append(errs, d.dropDevice(e, ifindex))
		}
	}
	return errors.Join(errs...)
}

func (d *Datapath) setDevice(e *entry, ifindex int) error {
	// The number may have belonged to a pod that is gone.
	for _, other := range d.pods {
		if other != e {
			delete(other.devices, ifindex)
		}
	}
	record, known := e.devices[ifindex]
	at := d.lookBefore(ifindex, known)
	record.Slot = e.slot
	if err := d.objects.KubepaceDevices.Put(uint32(ifindex), record); err != nil {
		return fmt.Errorf("write device %d: %w", ifindex, err)
	}
	if known && at.first() {
		return nil
	}
	a, err := d.attachNew(ifindex, at)
	if err != nil && !known {
		// The device may be gone by now, and nobody would know of its entry.
		return errors.Join(err, d.deleteDevice(ifindex))
	}
	if err != nil {
		return err
	}
	if a.ownClsact {
		record.Flags |= flagOwn
		if err := d.objects.KubepaceDevices.Put(uint32(ifindex), record); err != nil {
			return fmt.Errorf("write device %d: %w", ifindex, err)
		}
	}
	e.devices[ifindex] = record
	now := position{hook: HookTCX}
	if known || a.hook != HookTCX || at.hook != HookNone {
		now = d.look(ifindex)
	} else { // it was put at the head just now, and to look would wait for the kernel's lock of all network configuration
		d.first[ifindex] = true
	}
	if now.behind != "" {
		return &NotFirstError{Device: nameOf(ifindex), Behind: now.behind}
	}
	if known {
		d.repaired(e, ifindex, at)
	}
	d.log.V(1).Info("attached", "pod", e.identity.String(), "ifindex", ifindex, "hook", string(a.hook))
	return nil
}

// lookBefore is look for a device that is to be set. On one that is new, without a pin, there is nothing of ours where we
// attach by tcx, and to list its filters would wait for the kernel's lock of all network configuration.
func (d *Datapath) lookBefore(ifindex int, known bool) position {
	if !known && d.polled() {
		if _, err := os.Lstat(d.pins.link(ifindex)); errors.Is(err, fs.ErrNotExist) {
			return position{}
		}
	}
	return d.look(ifindex)
}

// dropDevice takes the program off a device and forgets the device. Called with mu held; others may work meanwhile.
func (d *Datapath) dropDevice(e *entry, ifindex int) error {
	own := e.devices[ifindex].Flags&flagOwn != 0
	if err := d.unlocked(func() error { return detach(d.pins, ifindex, own) }); err != nil {
		return err
	}
	if err := d.deleteDevice(ifindex); err != nil {
		return err
	}
	delete(e.devices, ifindex)
	return nil
}

func (d *Datapath) deleteDevice(ifindex int) error {
	if err := d.objects.KubepaceDevices.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete device %d: %w", ifindex, err)
	}
	delete(d.first, ifindex)
	return nil
}

// Remove takes a pod's limit away. Removing an unknown pod is no error.
func (d *Datapath) Remove(uid string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.changes.Add(1)
	e := d.pods[uid]
	if e == nil {
		return nil
	}
	var errs []error
	for ifindex := range e.devices {
		errs = append(errs, d.dropDevice(e, ifindex))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("pod %s: %w", e.identity, err)
	}
	if err := d.release(e); err != nil {
		return fmt.Errorf("pod %s: %w", e.identity, err)
	}
	delete(d.pods, uid)
	return nil
}

// release gives a slot back. The identity goes last: while it is there, an agent that starts finds the rest.
func (d *Datapath) release(e *entry) error {
	if err := d.objects.KubepaceLimits.Put(e.slot, bpf.EgressPaceLimit{}); err != nil {
		return fmt.Errorf("reset limit: %w", err)
	}
	e.limit = bpf.EgressPaceLimit{}
	return d.free(e.slot)
}

// free deletes a slot's flow table and identity. Called with mu held; others may work meanwhile.
func (d *Datapath) free(slot uint32) error {
	flows := d.objects.KubepaceFlows
	if err := d.unlocked(func() error { return flows.Delete(slot) }); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete flow table: %w", err)
	}
	if err := d.objects.KubepaceIdentities.Delete(slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete identity: %w", err)
	}
	delete(d.slots, slot)
	return nil
}

// States returns what the kernel holds, sorted by namespace and name.
func (d *Datapath) States() ([]State, error) {
	var ours map[int]bool
	if d.heads != nil {
		now, err := d.heads.names()
		if err != nil {
			d.log.V(1).Info("hooks are looked at one by one", "why", err.Error())
		}
		ours = now.set()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return readStates(&d.objects.EgressMaps, func(ifindex int) position {
		if ours[ifindex] {
			d.first[ifindex] = true
			return position{hook: HookTCX}
		}
		return d.look(ifindex)
	})
}

// Known is what was set, sorted as States sorts it: no map is read, and no hook is looked at that was found as it should
// be. With tcx each such look waits for the kernel's lock of all network configuration, which on a node where many pods
// start at once takes longer than all else. Counters and names of devices are left out. Disturbed finds what happened to
// hooks meanwhile, and States what happened to maps.
func (d *Datapath) Known() ([]State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	states := make([]State, 0, len(d.pods))
	for _, e := range d.pods {
		s := State{Limit: Limit{Pod: e.identity, Rate: bandwidth.Rate(e.limit.RateBps), Mode: Mode(e.limit.Mode)}}
		for ifindex := range e.devices {
			at := position{hook: HookTCX}
			if !d.polled() || !d.first[ifindex] {
				at = d.look(ifindex)
			}
			s.Devices = append(s.Devices, Device{Index: ifindex, Hook: at.hook, Behind: at.behind})
		}
		states = append(states, s)
	}
	sortStates(states)
	return states, nil
}

// UIDs of all pods that have state in the kernel, sorted.
func (d *Datapath) UIDs() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	uids := make([]string, 0, len(d.pods))
	for uid := range d.pods {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids
}
