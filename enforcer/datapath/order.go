// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bpf"
)

// What runs before our program may send a packet on its way, and ours would never see it. So ours is first on every
// device, and whoever goes before it later is passed again.

// Cause is what somebody did to a device's hook.
type Cause string

const (
	CauseRemoved Cause = "removed" // our program was taken off the device
	CauseHidden  Cause = "hidden"  // another program was put before ours
)

// Repair is a hook that Set found disturbed, and put right.
type Repair struct {
	Pod    Pod
	Device int // ifindex
	Cause  Cause
	By     string // with CauseHidden, what was before ours
}

func (r Repair) String() string {
	if r.Cause == CauseHidden {
		return fmt.Sprintf("%s was put before kubepace's program, which runs first again", r.By)
	}
	return "somebody removed kubepace's program; it is attached again"
}

// NotFirstError means that something runs before our program on a device and cannot be passed.
type NotFirstError struct {
	Device string
	Behind string
}

func (e *NotFirstError) Error() string {
	return fmt.Sprintf("%s comes before kubepace's program on %s and cannot be passed: packets that it sends on are not held", e.Behind, e.Device)
}

// position is where our program stands at a device's ingress.
type position struct {
	hook   Hook
	behind string // what the kernel runs before it
}

func (p position) first() bool { return p.hook != HookNone && p.behind == "" }

func positionOf(p pins, ifindex int) position {
	if l, err := link.LoadPinnedLink(p.link(ifindex), nil); err == nil {
		defer l.Close()
		info, err := l.Info()
		if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != ifindex {
			return position{}
		}
		return position{HookTCX, beforeLink(ifindex, info.ID)}
	}
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return position{}
	}
	own, before := ourFilter(list)
	if own == nil {
		return position{}
	}
	names := make([]string, len(before))
	for i, f := range before {
		names[i] = describeFilter(f)
	}
	return position{HookClsact, strings.Join(names, ", ")}
}

// beforeLink names the programs that run before a tcx link.
func beforeLink(ifindex int, id link.ID) string {
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return "" // it is attached: that much is known
	}
	var names []string
	for _, p := range result.Programs {
		if at, ok := p.LinkID(); ok && at == id {
			return strings.Join(names, ", ")
		}
		names = append(names, describeProgram(p.ID))
	}
	return ""
}

func describeProgram(id ebpf.ProgramID) string {
	name := ""
	if prog, err := ebpf.NewProgramFromID(id); err == nil {
		defer prog.Close()
		if info, err := prog.Info(); err == nil {
			name = info.Name
		}
	}
	return fmt.Sprintf("program %q (id %d)", name, id)
}

func describeFilter(f netlink.Filter) string {
	a := f.Attrs()
	if b, ok := f.(*netlink.BpfFilter); ok {
		return fmt.Sprintf("filter %q (bpf, pref %d handle %#x)", b.Name, a.Priority, a.Handle)
	}
	return fmt.Sprintf("filter %s pref %d handle %#x", f.Type(), a.Priority, a.Handle)
}

// ourFilter finds ours among the filters of a hook, which the kernel lists in the order in which it runs them, and
// returns those before it.
func ourFilter(list []netlink.Filter) (own *netlink.BpfFilter, before []netlink.Filter) {
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Name == filterName {
			return b, before
		}
		// An entry without a handle is the head of a preference, not a filter.
		if f.Attrs().Handle != 0 {
			before = append(before, f)
		}
	}
	return nil, nil
}

// tcxToHead puts a link that other programs were put before at the head again. The kernel moves no link, and takes no
// program twice: for some microseconds the program is off.
func tcxToHead(p pins, prog *ebpf.Program, ifindex int) error {
	old, err := link.LoadPinnedLink(p.link(ifindex), nil)
	if err != nil {
		return fmt.Errorf("load pinned tcx link of device %d: %w", ifindex, err)
	}
	defer old.Close()
	if err := errors.Join(old.Unpin(), old.Detach()); err != nil {
		return fmt.Errorf("detach tcx link of device %d: %w", ifindex, err)
	}
	return attachTCX(p, prog, ifindex)
}

// clsactToHead puts our filter before others of its preference: the last one added runs first. A stand-in with another
// handle keeps the limit meanwhile.
func clsactToHead(prog *ebpf.Program, ifindex int, own *netlink.BpfFilter) error {
	standIn, ours := newFilter(ifindex, prog.FD(), filterPriority), newFilter(ifindex, prog.FD(), filterPriority)
	standIn.Handle = standInHandle
	steps := []struct {
		what string
		do   func() error
	}{
		{"add stand-in", func() error { return netlink.FilterReplace(standIn) }},
		{"delete", func() error { return netlink.FilterDel(filterOf(ifindex, 0, own.Priority)) }},
		{"add", func() error { return netlink.FilterReplace(ours) }},
		{"delete stand-in", func() error { return netlink.FilterDel(standIn) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("put bpf filter of device %d first: %s: %w", ifindex, step.what, err)
		}
	}
	return nil
}

// occupied tells that a preference belongs to filters of another kind or protocol.
func occupied(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) }

// attachNew is makeFirst for a device that is to be set. By tcx to one that has nothing of ours it lets others work
// meanwhile. Called with mu held.
func (d *Datapath) attachNew(ifindex int, at position) (a attachment, err error) {
	if at.hook != HookNone || !d.polled() {
		return d.makeFirst(ifindex, at)
	}
	if d.claim(ifindex) {
		return attachment{hook: HookTCX}, nil
	}
	prog := d.objects.KubepaceEgress
	err = d.unlocked(func() (err error) {
		a, err = attach(d.pins, prog, ifindex, d.opts.clsact)
		return err
	})
	if errors.Is(err, unix.EEXIST) && d.claim(ifindex) { // Early was faster
		return attachment{hook: HookTCX}, nil
	}
	return a, err
}

// makeFirst attaches the program to a device that lacks it, or brings it before what was put before it.
func (d *Datapath) makeFirst(ifindex int, at position) (attachment, error) {
	prog := d.objects.KubepaceEgress
	if at.hook == HookTCX {
		return attachment{hook: HookTCX}, tcxToHead(d.pins, prog, ifindex)
	}
	a, err := attach(d.pins, prog, ifindex, d.opts.clsact)
	if err != nil || a.hook == HookTCX {
		return a, err
	}
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return a, fmt.Errorf("list filters of device %d: %w", ifindex, err)
	}
	own, before := ourFilter(list)
	if own == nil || len(before) == 0 {
		return a, nil
	}
	// Where the first preference is another kind's, nobody can go before it.
	if err := clsactToHead(prog, ifindex, own); err != nil && !occupied(err) {
		return a, err
	}
	return a, nil
}

// Disturbed reports whether a device lacks our program or has another one before it. The kernel tells nobody of such
// changes where programs are attached by tcx, so they are asked for; this is one read for all devices, or where the
// kernel has no such iterator one look at each, cheap enough for that. Filters of clsact are not looked at:
// the kernel tells of their changes.
func (d *Datapath) Disturbed() bool {
	if !d.polled() {
		return false
	}
	changes := d.changes.Load() // before the look: what ends later is looked at next time
	var now named
	if d.heads != nil {
		var err error
		if now, err = d.heads.names(); err == nil && d.heads.isCalm(now, changes) {
			return false
		}
	}
	devices, program := d.attached()
	ours, all := now.set(), d.heads != nil
	for _, ifindex := range devices {
		if ours[ifindex] {
			continue
		}
		all = false
		first, err := firstByTCX(ifindex)
		// Where the device is gone, that is told; an earlier agent's program, kept because ours could not replace it, is
		// as good as ours.
		if err == nil && first != program && !positionOf(d.pins, ifindex).first() {
			return true
		}
	}
	if all {
		d.heads.keepCalm(now, changes)
	}
	return false
}

// polled reports whether Disturbed sees what happens to hooks.
func (d *Datapath) polled() bool { return d.features.TCX && !d.opts.clsact }

// attached returns the devices that have our program, and its id. The looks that follow may each wait for other
// programs' changes of the network, and nobody else is to wait for them.
func (d *Datapath) attached() (devices []int, program ebpf.ProgramID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.pods {
		for ifindex := range e.devices {
			devices = append(devices, ifindex)
		}
	}
	return devices, d.program
}

// look asks the kernel, and keeps what Known may say.
func (d *Datapath) look(ifindex int) position {
	at := positionOf(d.pins, ifindex)
	if at.first() {
		d.first[ifindex] = true
	} else {
		delete(d.first, ifindex)
	}
	return at
}

// Repairs returns what Set put right since the last call.
func (d *Datapath) Repairs() []Repair {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.repairs
	d.repairs = nil
	return list
}

// maxRepairs bounds what is kept for a caller that does not come.
const maxRepairs = 1000

func (d *Datapath) repaired(e *entry, ifindex int, at position) {
	cause := CauseRemoved
	if at.hook != HookNone {
		cause = CauseHidden
	}
	if len(d.repairs) < maxRepairs {
		d.repairs = append(d.repairs, Repair{Pod: e.identity, Device: ifindex, Cause: cause, By: at.behind})
	}
	d.log.Info("hook put right", "pod", e.identity.String(), "ifindex", ifindex, "cause", string(cause), "by", at.behind)
}

// dropStandIn removes what an agent that died in the middle of clsactToHead left.
func dropStandIn(ifindex int) error {
	standIn := filterOf(ifindex, 0, filterPriority)
	standIn.Handle = standInHandle
	if err := netlink.FilterDel(standIn); err != nil && !gone(err) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete stand-in filter of device %d: %w", ifindex, err)
	}
	return nil
}

// flagOwn is set where the clsact qdisc was not there before us.
const flagOwn = bpf.EgressKubepaceDeviceFlagsKUBEPACE_OWN_CLSACT
