// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/bandwidth"
)

// ids are the programs at a device's ingress, in the order in which they run.
func (h *hooked) ids(dev Device) (list []ebpf.ProgramID) {
	h.Helper()
	result, err := link.QueryPrograms(link.QueryOptions{Target: dev.Index, Attach: ebpf.AttachTCXIngress})
	h.must(err, "query programs")
	for _, p := range result.Programs {
		list = append(list, p.ID)
	}
	return list
}

func (h *hooked) wantHeld(dev Device, held bool) {
	h.Helper()
	list := h.ids(dev)
	if is := len(list) > 0 && list[0] == h.program; is != held {
		h.Errorf("%s: programs %v, ours is %d; want ours first: %v", dev.Name, list, h.program, held)
	}
}

// onEarly is onHook where Early does anything.
func onEarly(t *testing.T, f func(h *hooked)) {
	onHook(t, false, func(h *hooked) {
		if h.heads == nil {
			h.Error("the kernel has tcx, and hooks are not read")
			return
		}
		f(h)
	})
}

func (h *hooked) attachEarly(dev Device) {
	h.Helper()
	attach := h.Early(dev.Index)
	if attach == nil {
		h.Fatalf("%s: nothing to attach early", dev.Name)
	}
	attach()
}

// TestEarly: a device is attached to before it is known whose it is, is not held until then, and becomes a pod's whole.
func TestEarly(t *testing.T) {
	onEarly(t, func(h *hooked) {
		dev := mustVeth(h.T, "b")
		h.attachEarly(dev)
		h.wantHeld(dev, true)
		if h.Early(dev.Index) != nil || h.Early(h.dev.Index) != nil {
			h.Error("what is attached is to be attached once more")
		}
		if states := mustStates(h.T, h.bpffs); len(states) != 1 {
			h.Errorf("pods %+v; want the one that was set", states)
		}
		before := h.ids(dev)
		limit := Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: []Device{dev}, Rate: bandwidth.Megabit}
		h.must(h.Set(limit), "set")
		if after := h.ids(dev); len(after) != 1 || after[0] != before[0] || len(h.early) != 0 {
			h.Errorf("programs %v, then %v, %d links left; want the same one, and none", before, after, len(h.early))
		}
		if list := h.Repairs(); len(list) != 0 || h.Disturbed() {
			h.Errorf("repairs %v, disturbed %v; want neither", list, h.Disturbed())
		}
		// The link is pinned: it stays when the agent ends, and the next one adopts it.
		h.must(h.Close(), "close")
		h.wantHeld(dev, true)
		d := mustOpen(h.T, h.bpffs)
		defer d.Close()
		h.Datapath = d
		h.wantHeld(dev, true)
		h.must(h.Remove("uid-late"), "remove")
		h.wantHeld(dev, false)
	})
}

// TestEarlyIsNotBelieved: what happened to the device meanwhile shows.
func TestEarlyIsNotBelieved(t *testing.T) {
	onEarly(t, func(h *hooked) {
		for name, meanwhile := range map[string]func(dev Device) Device{
			"another program went before ours": func(dev Device) Device {
				l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: h.pass("rival"), Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
				h.must(err, "attach a rival")
				h.Cleanup(func() { l.Close() })
				return dev
			},
			"the number is another device's": func(dev Device) Device {
				h.must(netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: dev.Index}}), "delete the device")
				again := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "again", Index: dev.Index}, PeerName: "againp"}
				h.must(netlink.LinkAdd(again), "add another")
				return Device{Index: dev.Index, Name: "again"}
			},
		} {
			dev := mustVeth(h.T, "b")
			h.attachEarly(dev)
			dev = meanwhile(dev)
			h.wantHeld(dev, false)
			limit := Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: []Device{dev}, Rate: bandwidth.Megabit}
			err := h.Set(limit)
			h.wantHeld(dev, true)
			if h.Disturbed() || err != nil {
				h.Errorf("%s: %v, disturbed %v; want our program first", name, err, h.Disturbed())
			}
			h.must(h.Remove("uid-late"), "remove")
			h.must(netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: dev.Index}}), "delete the device")
		}
	})
}

// TestSetWaitsForAnEnd: a device whose early link is being let go is attached to after that, since the kernel takes a program once.
func TestSetWaitsForAnEnd(t *testing.T) {
	onEarly(t, func(h *hooked) {
		dev := mustVeth(h.T, "b")
		h.attachEarly(dev)
		e := h.early[dev.Index]
		h.mu.Lock()
		e.taken = true // as letGo does, before it waits for the kernel
		h.mu.Unlock()
		ended := make(chan error, 1)
		go func() {
			time.Sleep(50 * time.Millisecond) // Set is there before
			err := e.end()
			h.mu.Lock()
			defer h.mu.Unlock()
			ended <- err
			h.forgetEarly(dev.Index)
		}()
		h.must(h.Set(Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: []Device{dev}, Rate: bandwidth.Megabit}), "set")
		select {
		case err := <-ended:
			h.must(err, "end")
		default:
			h.Error("set before the early link was off")
			h.must(<-ended, "end")
		}
		h.wantHeld(dev, true)
		if len(h.early) != 0 {
			h.Errorf("left: %v", h.early)
		}
	})
}

// TestEarlyIsBounded: others' devices come as well.
func TestEarlyIsBounded(t *testing.T) {
	onEarly(t, func(h *hooked) {
		h.must(h.Expect(1), "expect a pod")
		made := 0
		for i := range 100 {
			if attach := h.Early(1000 + i); attach != nil {
				made++
				attach()
			}
		}
		if made != 2+earlyMore {
			h.Errorf("%d links for one pod; want %d", made, 2+earlyMore)
		}
		h.must(h.Expect(0), "expect none")
	})
}

// TestEarlyFails: a device that goes before it is attached to is no trouble to anybody.
func TestEarlyFails(t *testing.T) {
	onEarly(t, func(h *hooked) {
		h.attachEarly(Device{Index: 9999, Name: "none"})
		dev := Device{Index: 9999, Name: "late"}
		h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev.Name, Index: dev.Index}, PeerName: "latep"}), "add veth")
		h.must(h.Set(Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: []Device{dev}, Rate: bandwidth.Megabit}), "set")
		h.wantHeld(dev, true)
	})
}

// TestUnclaimed: what no pod claims is let go, when no pod is expected any more and when the agent ends.
func TestUnclaimed(t *testing.T) {
	onEarly(t, func(h *hooked) {
		b, c := mustVeth(h.T, "b"), mustVeth(h.T, "c")
		h.attachEarly(b)
		h.must(h.Expect(1), "expect a pod")
		h.wantHeld(b, true)
		h.early[b.Index].from = h.early[b.Index].from.Add(-2 * unclaimedAfter)
		h.attachEarly(c)
		h.must(h.Expect(1), "expect a pod")
		h.wantHeld(b, false) // for too long
		h.wantHeld(c, true)
		h.must(h.Expect(0), "expect none")
		h.wantHeld(c, false)
		h.attachEarly(b)
		attach := h.Early(c.Index) // which is slower than the end
		closed := make(chan error)
		go func() { closed <- h.Close() }()
		for ended := false; !ended; {
			h.mu.Lock()
			ended = h.objects == nil
			h.mu.Unlock()
		}
		attach()
		h.must(<-closed, "close")
		h.wantHeld(b, false)
		h.wantHeld(c, false)
		h.wantHeld(h.dev, true)
		if h.Early(b.Index) != nil || h.Expect(1) != nil {
			h.Error("a datapath that is closed prepares for pods")
		}
	})
}

// TestExpect: slots are prepared for pods that are known, used by them, and given back.
func TestExpect(t *testing.T) {
	onEarly(t, func(h *hooked) {
		const pods = keptSpare + 5
		table := func(slot uint32) (id uint32) {
			h.Helper()
			if err := h.objects.KubepaceFlows.Lookup(slot, &id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				h.Errorf("flow table of slot %d: %v", slot, err)
			}
			return id
		}
		want := func(what string, spare, slots int) {
			h.Helper()
			if len(h.spare) != spare || len(h.slots) != slots {
				h.Errorf("%s: %d spare of %d slots; want %d of %d", what, len(h.spare), len(h.slots), spare, slots)
			}
			seen := map[uint32]bool{}
			for _, slot := range h.spare {
				if id := table(slot); id == 0 || seen[id] {
					h.Errorf("%s: slot %d has flow table %d; want one of its own", what, slot, id)
				}
				seen[table(slot)] = true
			}
		}
		h.must(h.Expect(pods), "expect pods")
		want("expected", pods, pods+1)
		if states := mustStates(h.T, h.bpffs); len(states) != 1 {
			h.Errorf("pods %+v; want the one that was set", states)
		}
		slot := h.spare[0]
		id := table(slot)
		h.must(h.Set(Limit{Pod: Pod{"team", "late", "uid-late"}, Devices: []Device{mustVeth(h.T, "b")}, Rate: bandwidth.Megabit}), "set")
		want("one came", pods-1, pods+1)
		if e := h.pods["uid-late"]; e.slot != slot || table(slot) != id {
			h.Errorf("it has slot %d, flow table %d; want %d and %d, which were prepared", e.slot, table(slot), slot, id)
		}
		h.must(h.Expect(0), "expect none")
		want("nobody comes", keptSpare, keptSpare+2)
		h.must(h.Expect(3), "expect few")
		want("few come", keptSpare, keptSpare+2)
		h.must(h.Expect(10*maxSpare), "expect many")
		want("many come", maxSpare, maxSpare+2)
		last := h.spare[len(h.spare)-1]
		h.must(h.Expect(0), "expect none")
		if id := table(last); id != 0 {
			h.Errorf("slot %d has flow table %d; want none", last, id)
		}
		for i := range keptSpare + 2 {
			dev := mustVeth(h.T, fmt.Sprintf("v%d", i))
			h.must(h.Set(Limit{Pod: Pod{"team", fmt.Sprint(i), fmt.Sprint(i)}, Devices: []Device{dev}, Rate: bandwidth.Megabit}), "set")
		}
		want("more came than were expected", 0, keptSpare+4)
	})
}
