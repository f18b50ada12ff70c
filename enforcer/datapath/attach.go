// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	filterName     = "kubepace_egress"
	filterPriority = 1
	// filterHandle is ours ("kp"), so that we never replace somebody else's filter of the same priority.
	filterHandle = 0x6b70
	// standInHandle is of the filter that keeps the limit while ours changes its place.
	standInHandle = filterHandle + 1
	// lastPriority: where the first preferences are taken by filters of other kinds, ours comes behind them.
	lastPriority = 16
)

// attachment is one device's hook.
type attachment struct {
	hook Hook
	// ownClsact: the clsact qdisc was not there before.
	ownClsact bool
}

// attach puts the program first at a device's ingress: by tcx where the kernel has it, else as a clsact filter.
// Attaching again replaces the program without a gap, and leaves it where it is among others.
func attach(p pins, prog *ebpf.Program, ifindex int, clsact bool) (attachment, error) {
	if !clsact {
		err := attachTCX(p, prog, ifindex)
		if err == nil {
			return attachment{hook: HookTCX}, nil
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return attachment{}, err
		}
	}
	own, err := attachClsact(prog, ifindex)
	return attachment{hook: HookClsact, ownClsact: own}, err
}

func attachTCX(p pins, prog *ebpf.Program, ifindex int) error {
	pin := p.link(ifindex)
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer old.Close()
		if tcxIndex(old) == ifindex {
			if err := old.Update(prog); err != nil {
				return fmt.Errorf("update tcx link of device %d: %w", ifindex, err)
			}
			return nil
		}
		// Its device is gone, and the number was given to another one.
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("unpin stale tcx link %s: %w", pin, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("load pinned tcx link %s: %w", pin, err)
	}
	l, err := attachHead(prog, ifindex)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin tcx link %s: %w", pin, err)
	}
	return nil
}

// attachHead puts the program before all others at a device's ingress.
func attachHead(prog *ebpf.Program, ifindex int) (link.Link, error) {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, fmt.Errorf("attach tcx to device %d: %w", ifindex, err)
	}
	return l, nil
}

// tcxIndex is the device that a link hangs on, 0 where that device is gone.
func tcxIndex(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return 0
	}
	return int(info.TCX().Ifindex)
}

// attachClsact reuses a clsact or ingress qdisc that is there, and adds clsact where none is.
func attachClsact(prog *ebpf.Program, ifindex int) (own bool, err error) {
	own, err = ensureIngressHook(ifindex)
	if err != nil {
		return false, err
	}
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return own, fmt.Errorf("list filters of device %d: %w", ifindex, err)
	}
	before, _ := ourFilter(list)
	for priority := uint16(filterPriority); ; priority++ {
		if before != nil && before.Priority == priority && isProgram(before, prog) {
			return own, nil
		}
		err = netlink.FilterReplace(newFilter(ifindex, prog.FD(), priority))
		if err == nil && before != nil && before.Priority > priority {
			err = netlink.FilterDel(filterOf(ifindex, 0, before.Priority)) // the better place has become free
		}
		if err == nil {
			return own, nil
		}
		if !occupied(err) || priority == lastPriority {
			return own, fmt.Errorf("add bpf filter to device %d: %w", ifindex, err)
		}
	}
}

func isProgram(f *netlink.BpfFilter, prog *ebpf.Program) bool {
	info, err := prog.Info()
	if err != nil {
		return false
	}
	id, ok := info.ID()
	return ok && f.Id == int(id)
}

func ensureIngressHook(ifindex int) (added bool, err error) {
	err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		// A clsact answers EEXIST; an "ingress" qdisc (the CNI bandwidth plugin's) "Exclusivity flag on". Both take filters.
		if hasIngressQdisc(ifindex) {
			return false, nil
		}
	}
	return false, fmt.Errorf("add clsact to device %d: %w", ifindex, lacksKind(err, "sch_ingress (CONFIG_NET_SCH_INGRESS), and tcx (Linux 6.6)"))
}

func hasIngressQdisc(ifindex int) bool { return ingressQdisc(ifindex) != "" }

// ingressQdisc is "clsact", "ingress", or "" for none.
func ingressQdisc(ifindex int) string {
	qdiscs, err := retryDump(func() ([]netlink.Qdisc, error) {
		return netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}})
	})
	if err != nil {
		return ""
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" || q.Type() == "ingress" {
			return q.Type()
		}
	}
	return ""
}

// newFilter is filterOf for a filter to add. The kernel shows all filters of a hook under the parent that the latest one
// was added with: an ingress qdisc's owner is to find them under the qdisc's own, as before.
func newFilter(ifindex, fd int, priority uint16) *netlink.BpfFilter {
	f := filterOf(ifindex, fd, priority)
	if ingressQdisc(ifindex) == "ingress" {
		f.Parent = netlink.MakeHandle(0xffff, 0)
	}
	return f
}

func filterOf(ifindex, fd int, priority uint16) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex,
			// The same number for clsact's ingress side and for an ingress qdisc.
			Parent:   netlink.HANDLE_MIN_INGRESS,
			Handle:   filterHandle,
			Protocol: unix.ETH_P_ALL,
			Priority: priority,
		},
		Fd: fd, Name: filterName, DirectAction: true,
	}
}

// detach takes the program off a device. A device that is gone is no error.
func detach(p pins, ifindex int, ownClsact bool) error {
	l, err := link.LoadPinnedLink(p.link(ifindex), nil)
	if err == nil {
		defer l.Close()
		if err := l.Unpin(); err != nil {
			return fmt.Errorf("unpin tcx link of device %d: %w", ifindex, err)
		}
		// Some kernels let an unpinned link go only a moment later, and take the program twice on no device meanwhile.
		if err := l.Detach(); err != nil {
			return fmt.Errorf("detach tcx link of device %d: %w", ifindex, err)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("load pinned tcx link of device %d: %w", ifindex, err)
	}
	if err := dropStandIn(ifindex); err != nil {
		return err
	}
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil //nolint:nilerr // the device is gone
	}
	if own, _ := ourFilter(list); own != nil {
		if err := netlink.FilterDel(filterOf(ifindex, 0, own.Priority)); err != nil && !gone(err) {
			return fmt.Errorf("delete bpf filter of device %d: %w", ifindex, err)
		}
	}
	// Somebody may have put an "ingress" qdisc in the place of our clsact.
	if !ownClsact || ingressQdisc(ifindex) != "clsact" || !ingressIsEmpty(ifindex) {
		return nil
	}
	err = netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !gone(err) {
		return fmt.Errorf("delete clsact of device %d: %w", ifindex, err)
	}
	return nil
}

// hookOf says where our program hangs on a device now.
func hookOf(p pins, ifindex int) Hook { return positionOf(p, ifindex).hook }

func filters(ifindex int, parent uint32) ([]netlink.Filter, error) {
	return retryDump(func() ([]netlink.Filter, error) {
		return netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, parent)
	})
}

func hasFilter(ifindex int) bool {
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return false
	}
	own, _ := ourFilter(list)
	return own != nil
}

// ingressIsEmpty: nobody else has a filter on either side of clsact.
func ingressIsEmpty(ifindex int) bool {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		list, err := filters(ifindex, parent)
		if err != nil || len(list) > 0 {
			return false
		}
	}
	return true
}

func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist)
}

// retryDump repeats a netlink dump that the kernel interrupted because the table changed under it.
func retryDump[T any](dump func() ([]T, error)) ([]T, error) {
	const attempts = 5
	var out []T
	var err error
	for range attempts {
		out, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}
