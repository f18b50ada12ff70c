// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/bpf"
)

// Read returns what is pinned under bpffs, agent or not, sorted by namespace and name. It only looks: no lock is
// taken in the kernel and no map is written. Where nothing is pinned it returns no states and an error that wraps
// os.ErrNotExist.
func Read(bpffs string) ([]State, error) {
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	layout, err := ownLayout()
	if err != nil {
		return nil, err
	}
	p := pins{bpffs, layout}
	if others := p.others(); !p.exist() && len(others) > 0 {
		return nil, fmt.Errorf("what is pinned under %s is of another version of kubepace; its limits are in force, and this version's agent takes them over when it starts", others[0].dir())
	}
	if !p.exist() {
		return nil, fmt.Errorf("nothing is pinned under %s: %w", p.dir(), fs.ErrNotExist)
	}
	var maps bpf.EgressMaps
	for name, to := range map[string]**ebpf.Map{
		bpf.EgressMapKubepaceDevices:    &maps.KubepaceDevices,
		bpf.EgressMapKubepaceLimits:     &maps.KubepaceLimits,
		bpf.EgressMapKubepacePods:       &maps.KubepacePods,
		bpf.EgressMapKubepaceIdentities: &maps.KubepaceIdentities,
	} {
		m, err := ebpf.LoadPinnedMap(p.file(name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("load pinned map %s: %w", name, err)
		}
		defer m.Close()
		*to = m
	}
	return readStates(&maps, func(ifindex int) position { return positionOf(p, ifindex) })
}

func readStates(maps *bpf.EgressMaps, look func(ifindex int) position) ([]State, error) {
	devices, err := readDevices(maps.KubepaceDevices)
	if err != nil {
		return nil, err
	}
	name, done, err := deviceNames()
	if err != nil {
		return nil, err
	}
	defer done()
	bySlot := map[uint32][]Device{}
	for ifindex, record := range devices {
		at := look(ifindex)
		dev := Device{Index: ifindex, Name: name(ifindex), Hook: at.hook, Behind: at.behind}
		bySlot[record.Slot] = append(bySlot[record.Slot], dev)
	}
	slots, identities, err := entries[bpf.EgressKubepaceIdentity](maps.KubepaceIdentities)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	if len(slots) == 0 {
		return nil, nil
	}
	used := slices.Max(slots) + 1
	limits, err := first[bpf.EgressPaceLimit](maps.KubepaceLimits, used)
	if err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	clocks, err := first[bpf.EgressPacePod](maps.KubepacePods, used)
	if err != nil {
		return nil, fmt.Errorf("read clocks: %w", err)
	}
	states := make([]State, len(slots))
	for i, slot := range slots {
		states[i] = stateOf(limits[slot], clocks[slot])
		states[i].Pod = podOf(identities[i])
		states[i].Devices = bySlot[slot]
	}
	sortStates(states)
	return states, nil
}

// sortStates orders pods by namespace, name and UID, and the devices of each by ifindex.
func sortStates(states []State) {
	for _, s := range states {
		slices.SortFunc(s.Devices, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	}
	slices.SortFunc(states, func(a, b State) int { return a.Pod.Compare(b.Pod) })
}

// nameOf is empty where the device is gone.
func nameOf(ifindex int) string {
	name, done, err := deviceNames()
	if err != nil {
		return ""
	}
	defer done()
	return name(ifindex)
}

func stateOf(limit bpf.EgressPaceLimit, pod bpf.EgressPacePod) State {
	s := State{
		Limit: Limit{Rate: bandwidth.Rate(limit.RateBps), Mode: Mode(limit.Mode)},
		Counters: Counters{
			Packets: pod.Packets, Bytes: pod.Bytes, Delayed: pod.Delayed, Sparse: pod.Sparse, Marked: pod.Marked,
			Dropped: pod.Dropped, DroppedBytes: pod.DroppedBytes,
		},
	}
	if limit.RateBps != 0 {
		s.Horizon = horizonOf(limit)
	}
	if now := monotonicNs(); pod.ClockNs > now {
		s.Backlog = time.Duration(pod.ClockNs - now)
	}
	return s
}

// deviceNames looks up single devices, empty for one that is gone. net.InterfaceByIndex asks for all devices of the
// node each time: with 250 pods that was most of what the agent did.
func deviceNames() (name func(ifindex int) string, done func(), err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a socket to ask for devices' names: %w", err)
	}
	name = func(ifindex int) string {
		request, err := unix.NewIfreq("")
		if err != nil {
			return ""
		}
		request.SetUint32(uint32(ifindex))
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request); err != nil {
			return ""
		}
		return request.Name()
	}
	return name, func() { unix.Close(fd) }, nil
}

func readDevices(m *ebpf.Map) (map[int]bpf.EgressKubepaceDevice, error) {
	indexes, records, err := entries[bpf.EgressKubepaceDevice](m)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	out := make(map[int]bpf.EgressKubepaceDevice, len(indexes))
	for i, index := range indexes {
		out[int(index)] = records[i]
	}
	return out, nil
}

// entriesAtOnce is more than any bucket of a hash map holds: the kernel gives whole buckets.
const entriesAtOnce = 64

// entries reads a hash map, many entries with each call: one call for each had been a thousand with 250 pods, in every
// pass. An entry that comes or goes meanwhile is there or not; all others are there once.
func entries[V any](m *ebpf.Map) (keys []uint32, values []V, err error) {
	var cursor ebpf.MapBatchCursor
	k, v := make([]uint32, entriesAtOnce), make([]V, entriesAtOnce)
	for {
		n, err := m.BatchLookup(&cursor, k, v, nil)
		keys, values = append(keys, k[:n]...), append(values, v[:n]...)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // the end
			return keys, values, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// first reads the first n entries of an array.
func first[V any](m *ebpf.Map, n uint32) ([]V, error) {
	keys, values := make([]uint32, n), make([]V, n)
	var cursor ebpf.MapBatchCursor
	got, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, err
	}
	if got != int(n) {
		return nil, fmt.Errorf("%d entries of %d", got, n)
	}
	return values, nil
}

// monotonicNs is the clock of bpf_ktime_get_ns.
func monotonicNs() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

func identityOf(p Pod) bpf.EgressKubepaceIdentity {
	var id bpf.EgressKubepaceIdentity
	putText(id.Uid[:], p.UID)
	putText(id.Namespace[:], p.Namespace)
	putText(id.Name[:], p.Name)
	return id
}

func podOf(id bpf.EgressKubepaceIdentity) Pod {
	return Pod{UID: text(id.Uid[:]), Namespace: text(id.Namespace[:]), Name: text(id.Name[:])}
}

// putText keeps room for a final zero. Kubernetes' own limits (63, 253, 36) fit.
func putText(to []int8, s string) {
	for i := 0; i < len(s) && i < len(to)-1; i++ {
		to[i] = int8(s[i])
	}
}

func text(from []int8) string {
	b := make([]byte, 0, len(from))
	for _, c := range from {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}
