// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/kubepace/kubepace/bandwidth"
)

// openWithHeads is nil where the kernel has no tcx; one that has it must have the iterator as well.
func openWithHeads(t *testing.T, bpffs string) *Datapath {
	t.Helper()
	d := mustOpen(t, bpffs)
	switch {
	case !d.features.TCX:
		t.Log("left out: this kernel has no tcx")
	case d.heads == nil:
		t.Error("hooks can only be looked at one by one")
	default:
		return d
	}
	_ = d.Close()
	return nil
}

// TestFirstByTCX says what the library's own query says: of none, one and several programs, and of no device.
func TestFirstByTCX(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := openWithHeads(t, bpffs)
		if d == nil {
			return
		}
		defer d.Close()
		a := mustVeth(t, "a")
		check := func(what string, programs int) {
			t.Helper()
			want, err := link.QueryPrograms(link.QueryOptions{Target: a.Index, Attach: ebpf.AttachTCXIngress})
			if err != nil || len(want.Programs) != programs {
				t.Errorf("%s: %d programs, %v; want %d", what, len(want.Programs), err, programs)
				return
			}
			var id ebpf.ProgramID
			if programs > 0 {
				id = want.Programs[0].ID
			}
			if got, err := firstByTCX(a.Index); err != nil || got != id {
				t.Errorf("%s: %d, %v; want %d", what, got, err, id)
			}
			named, err := d.heads.names()
			if ours := id == d.program; err != nil || named.set()[a.Index] != ours {
				t.Errorf("%s: ours at the head of: %v, %v; want %d there: %v", what, named.set(), err, a.Index, ours)
			}
		}
		check("nothing attached", 0)
		if err := d.Set(Limit{Pod: Pod{"team", "web", "uid"}, Devices: []Device{a}, Rate: bandwidth.Megabit}); err != nil {
			t.Errorf("set: %v", err)
		}
		check("ours", 1)
		for range 3 {
			other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
			if err != nil {
				t.Errorf("load another program: %v", err)
				return
			}
			defer other.Close()
			l, err := link.AttachTCX(link.TCXOptions{Interface: a.Index, Program: other, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err != nil {
				t.Errorf("attach another program: %v", err)
				return
			}
			defer l.Close()
		}
		check("three others before ours", 4)
		if _, err := firstByTCX(a.Index + 1000); err == nil {
			t.Error("a device that does not exist has a first program")
		}
	})
}

// TestHeads: of several devices, read in pieces that end in the middle of a device's number, those are named that have
// our program first, and what became of the others is seen.
func TestHeads(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := openWithHeads(t, bpffs)
		if d == nil {
			return
		}
		defer d.Close()
		devices := []Device{mustVeth(t, "a"), mustVeth(t, "b"), mustVeth(t, "c"), mustVeth(t, "d")}
		indexes := make([]int, len(devices))
		for i, dev := range devices {
			indexes[i] = dev.Index
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		want := func(what string, disturbed bool, want ...int) {
			t.Helper()
			for _, size := range []int{4096, 6} {
				d.heads.buf = make([]byte, size)
				named, err := d.heads.names()
				if got := slices.Sorted(maps.Keys(named.set())); err != nil || !slices.Equal(got, want) {
					t.Errorf("%s, a buffer of %d bytes: ours at the head of: %v, %v; want %v", what, size, got, err, want)
				}
			}
			if d.Disturbed() != disturbed {
				t.Errorf("%s: disturbed %v", what, !disturbed)
			}
		}
		limit := Limit{Pod: Pod{"team", "web", "uid"}, Devices: devices[:3], Rate: bandwidth.Megabit}
		must(d.Set(limit))
		want("three of four have it", false, indexes[:3]...)
		l, err := link.LoadPinnedLink(d.pins.link(indexes[1]), nil)
		must(err)
		must(errors.Join(l.Detach(), l.Close()))
		want("one was taken off", true, indexes[0], indexes[2])
		must(d.Set(limit))
		want("it is back", false, indexes[:3]...)
		// What comes and is disturbed between two looks leaves no trace in what is named.
		late := Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: devices[3:], Rate: bandwidth.Megabit}
		must(d.Set(late))
		l, err = link.LoadPinnedLink(d.pins.link(indexes[3]), nil)
		must(err)
		must(errors.Join(l.Detach(), l.Close()))
		want("another came and was taken off", true, indexes[:3]...)
		want("and nobody put it back", true, indexes[:3]...)
		must(d.Remove(late.Pod.UID))
		want("it is gone", false, indexes[:3]...)
		must(d.Remove(limit.Pod.UID))
		want("none is left", false)
	})
}
