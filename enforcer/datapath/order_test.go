// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/go-logr/logr/testr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
)

// hooked is a device with a limit, on one of the two hooks.
type hooked struct {
	*testing.T
	*Datapath
	bpffs string
	dev   Device
	limit Limit
}

func (h *hooked) must(err error, what string) {
	h.Helper()
	if err != nil {
		h.Errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}

// onHook runs f with a limited device; clsact as on a kernel without tcx.
func onHook(t *testing.T, clsact bool, f func(h *hooked)) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d, err := Open(Options{BPFFS: bpffs, Log: testr.New(t), clsact: clsact})
		h := &hooked{T: t, Datapath: d, bpffs: bpffs}
		h.must(err, "open")
		defer d.Close()
		if !clsact && !d.Features().TCX {
			t.Log("left out: this kernel has no tcx")
			return
		}
		h.dev = mustVeth(t, "a")
		h.limit = Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{h.dev}, Rate: bandwidth.Megabit}
		h.must(d.Set(h.limit), "set")
		h.wantUndisturbed()
		if list := d.Repairs(); len(list) != 0 {
			t.Errorf("repairs after the first set: %v", list)
		}
		f(h)
	})
}

func (h *hooked) wantUndisturbed() {
	h.Helper()
	dev := mustStates(h.T, h.bpffs)[0].Devices[0]
	if dev.Hook == HookNone || dev.Behind != "" || h.Disturbed() {
		h.Errorf("device %+v, disturbed %v; want our program attached and first", dev, h.Disturbed())
	}
}

// pass is a program that ends the hook's run: what comes after it sees no packet.
func (h *hooked) pass(name string) *ebpf.Program {
	h.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL",
	})
	h.must(err, "load a program")
	return prog
}

func (h *hooked) filter(prog *ebpf.Program, priority uint16) *netlink.BpfFilter {
	f := filterOf(h.dev.Index, prog.FD(), priority)
	f.Handle, f.Name = 1, "rival"
	return f
}

// untilDetached waits for the kernel, which lets go of a link that nobody holds a moment later.
func (h *hooked) untilDetached() error {
	for range 500 {
		if first, err := firstByTCX(h.dev.Index); err != nil || first == 0 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the program is still attached after 5 s")
}

// wantKnown compares what Known and States say of the device's hook.
func (h *hooked) wantKnown(want Hook, behind bool) {
	h.Helper()
	for what, read := range map[string]func() ([]State, error){"Known": h.Known, "States": h.States} {
		states, err := read()
		h.must(err, what)
		if dev := states[0].Devices[0]; dev.Hook != want || (dev.Behind != "") != behind {
			h.Errorf("%s: device %+v; want hook %q, behind another program: %v", what, dev, want, behind)
		}
	}
}

// TestKnownHooks: a hook that is as it should be is not looked at again until Disturbed or States has a look; one that
// is not is looked at each time.
func TestKnownHooks(t *testing.T) {
	onHook(t, false, func(h *hooked) {
		h.wantKnown(HookTCX, false)
		l, err := link.LoadPinnedLink(h.pins.link(h.dev.Index), nil)
		h.must(err, "load pinned link")
		defer l.Close()
		h.must(l.Detach(), "detach")
		if !h.Disturbed() {
			h.Error("not noticed")
		}
		if _, err := h.States(); err != nil { // as the pass does that follows
			h.Error(err)
		}
		h.wantKnown(HookNone, false)
		h.must(h.Set(h.limit), "set again")
		h.wantKnown(HookTCX, false)
		h.must(h.Remove(h.limit.Pod.UID), "remove")
		if len(h.first) != 0 {
			h.Errorf("removed devices are still known: %v", h.first)
		}
	})
}

func TestWhatWasTakenOffComesBack(t *testing.T) {
	for name, test := range map[string]struct {
		clsact bool
		take   func(h *hooked) error
	}{
		"tcx link detached": {false, func(h *hooked) error {
			l, err := link.LoadPinnedLink(h.pins.link(h.dev.Index), nil)
			h.must(err, "load pinned link")
			defer l.Close()
			return l.Detach()
		}},
		"tcx pin deleted": {false, func(h *hooked) error {
			h.must(os.Remove(h.pins.link(h.dev.Index)), "delete the pin")
			return h.untilDetached()
		}},
		"filter deleted": {true, func(h *hooked) error {
			return netlink.FilterDel(filterOf(h.dev.Index, 0, filterPriority))
		}},
		"clsact deleted": {true, func(h *hooked) error {
			return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: h.dev.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			onHook(t, test.clsact, func(h *hooked) {
				h.must(test.take(h), name)
				if dev := mustStates(h.T, h.bpffs)[0].Devices[0]; dev.Hook != HookNone {
					h.Errorf("device %+v; want no hook", dev)
				}
				if !test.clsact && !h.Disturbed() {
					h.Error("not noticed")
				}
				h.must(h.Set(h.limit), "set again")
				h.wantUndisturbed()
				list := h.Repairs()
				if len(list) != 1 || list[0].Cause != CauseRemoved || list[0].Pod != h.limit.Pod || list[0].Device != h.dev.Index {
					h.Errorf("repairs %+v; want one, of a program that was removed", list)
				}
				h.must(h.Set(h.limit), "set once more")
				if list := h.Repairs(); len(list) != 0 {
					h.Errorf("repairs of nothing: %v", list)
				}
			})
		})
	}
}

func TestWhatWentBeforeOursIsPassed(t *testing.T) {
	for name, test := range map[string]struct {
		clsact bool
		put    func(h *hooked, prog *ebpf.Program) error
	}{
		"tcx at the head": {false, func(h *hooked, prog *ebpf.Program) error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: h.dev.Index, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err == nil {
				h.Cleanup(func() { l.Close() })
			}
			return err
		}},
		"filter of preference 1": {true, func(h *hooked, prog *ebpf.Program) error {
			return netlink.FilterAdd(h.filter(prog, filterPriority))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			onHook(t, test.clsact, func(h *hooked) {
				prog := h.pass("rival")
				defer prog.Close()
				h.must(test.put(h, prog), "put a program before ours")
				if dev := mustStates(h.T, h.bpffs)[0].Devices[0]; dev.Hook == HookNone || !strings.Contains(dev.Behind, `"rival"`) {
					h.Errorf("device %+v; want it behind the rival", dev)
				}
				if !test.clsact && !h.Disturbed() {
					h.Error("not noticed")
				}
				h.must(h.Set(h.limit), "set again")
				h.wantUndisturbed()
				list := h.Repairs()
				if len(list) != 1 || list[0].Cause != CauseHidden || !strings.Contains(list[0].String(), `"rival"`) {
					h.Errorf("repairs %+v; want one that names the rival", list)
				}
				if test.clsact {
					list, err := filters(h.dev.Index, netlink.HANDLE_MIN_INGRESS)
					h.must(err, "list filters")
					if own, before := ourFilter(list); own == nil || len(before) != 0 || len(list) != 2 {
						h.Errorf("filters %v; want ours and the rival's", list)
					}
				}
				h.must(h.Remove("uid-web"), "remove")
				if h.rivals() != 1 {
					h.Errorf("%d programs of others left; want the rival", h.rivals())
				}
			})
		})
	}
}

// rivals counts what others have at the device's ingress.
func (h *hooked) rivals() int {
	list, err := filters(h.dev.Index, netlink.HANDLE_MIN_INGRESS)
	h.must(err, "list filters")
	result, err := link.QueryPrograms(link.QueryOptions{Target: h.dev.Index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return len(list)
	}
	return len(list) + len(result.Programs)
}

// TestFirstPreferenceIsTaken: a filter of another kind owns preference 1, as Calico's does that redirects to its
// token bucket. Ours comes behind it, that is said, and it comes first when it can.
func TestFirstPreferenceIsTaken(t *testing.T) {
	onHook(t, true, func(h *hooked) {
		h.must(h.Remove("uid-web"), "remove")
		rival := &netlink.U32{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.dev.Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		}, ClassId: netlink.MakeHandle(1, 1)}
		h.must(netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: h.dev.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}), "add ingress qdisc")
		h.must(netlink.FilterAdd(rival), "add u32")
		for range 2 {
			var notFirst *NotFirstError
			if err := h.Set(h.limit); !errors.As(err, &notFirst) || notFirst.Device != "a" || !strings.Contains(notFirst.Behind, "u32 pref 1") {
				h.Errorf("set: %v; want *NotFirstError", err)
			}
		}
		if dev := mustStates(h.T, h.bpffs)[0].Devices[0]; dev.Hook != HookClsact || !strings.Contains(dev.Behind, "u32 pref 1") {
			h.Errorf("device %+v; want it attached behind u32", dev)
		}
		list, err := filters(h.dev.Index, netlink.HANDLE_MIN_INGRESS)
		h.must(err, "list filters")
		for _, f := range list {
			if f.Type() == "u32" {
				h.must(netlink.FilterDel(f), "delete u32")
				break
			}
		}
		h.must(h.Set(h.limit), "set when preference 1 is free")
		h.wantUndisturbed()
		h.must(h.Remove("uid-web"), "remove")
		if hasFilter(h.dev.Index) || ingressQdisc(h.dev.Index) != "ingress" {
			h.Errorf("filter %v, qdisc %q; want the other's qdisc alone", hasFilter(h.dev.Index), ingressQdisc(h.dev.Index))
		}
	})
}

// TestOwnClsactBecameAnothers: what stands where our clsact was is not deleted.
func TestOwnClsactBecameAnothers(t *testing.T) {
	onHook(t, true, func(h *hooked) {
		h.must(netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: h.dev.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}), "delete clsact")
		h.must(netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: h.dev.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}), "add ingress qdisc")
		h.must(h.Set(h.limit), "set again")
		h.must(h.Remove("uid-web"), "remove")
		if got := ingressQdisc(h.dev.Index); got != "ingress" {
			h.Errorf("qdisc %q; want the other's", got)
		}
	})
}

// TestStandInIsCollected: an agent died while it changed its filter's place.
func TestStandInIsCollected(t *testing.T) {
	onHook(t, true, func(h *hooked) {
		standIn := filterOf(h.dev.Index, h.objects.KubepaceEgress.FD(), filterPriority)
		standIn.Handle = standInHandle
		h.must(netlink.FilterReplace(standIn), "add stand-in")
		h.must(h.Set(h.limit), "set again")
		if h.rivals() != 1 {
			h.Errorf("%d filters; want ours", h.rivals())
		}
		h.must(netlink.FilterReplace(standIn), "add stand-in")
		h.must(h.Remove("uid-web"), "remove")
		if ingressQdisc(h.dev.Index) != "" {
			h.Error("clsact is left")
		}
	})
}
