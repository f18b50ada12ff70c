// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/kubepace/kubepace/bandwidth"
)

// TestFirstByTCX says what the library's own query says: of none, one and several programs, and of no device.
func TestFirstByTCX(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		if !d.features.TCX {
			t.Log("left out: this kernel has no tcx")
			return
		}
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
