// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sync/errgroup"
)

// What a pod needs of the kernel before it can be limited waits: the program's link for the kernel's lock of all network
// configuration, for which the CNI plugins of pods that start together queue, and the table of flows for all processors
// to have seen it. Both can be made before it is known which pod a device leads to: a device without an entry in the map
// of devices is not held.

// early is a link to a device that nobody has named yet. It is not pinned: it ends with this process.
type early struct {
	done  chan struct{} // closed when the attempt is over
	link  link.Link     // nil where it failed
	from  time.Time
	taken bool          // it is being claimed, or let go
	gone  chan struct{} // closed when that is over
}

const (
	// maxSpare bounds the prepared slots that wait for a pod; keptSpare of them stay while none is expected.
	maxSpare  = 128
	keptSpare = 16
	// earlyMore bounds the links that wait for a pod to so many more than twice the pods that are expected: others' devices
	// come as well.
	earlyMore = 16
	// unclaimedAfter is when a device that no pod has claimed is let go while pods are still expected.
	unclaimedAfter = time.Minute
	// preparedAtOnce bounds how many slots are prepared together.
	preparedAtOnce = 8
)

// Early returns what attaches the program to a device that a pod may turn out to have, which waits for the kernel and must be
// called; nil where there is nothing to do, or where Set would have to look at the hook anyhow. From here on Set waits for
// that and completes it; Expect lets go of what no Set claims.
func (d *Datapath) Early(ifindex int) (attach func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects == nil || d.heads == nil || d.early[ifindex] != nil || len(d.early) >= 2*d.expected+earlyMore || d.has(ifindex) {
		return nil
	}
	prog, err := d.objects.KubepaceEgress.Clone() // Close does not wait
	if err != nil {
		return nil
	}
	e := &early{done: make(chan struct{}), gone: make(chan struct{}), from: time.Now()}
	d.early[ifindex] = e
	return func() {
		defer close(e.done)
		defer prog.Close()
		l, err := attachHead(prog, ifindex)
		if err != nil {
			d.log.V(1).Info("not attached early", "ifindex", ifindex, "why", err.Error())
			return
		}
		e.link = l
	}
}

// has reports whether a pod has the device. Called with mu held.
func (d *Datapath) has(ifindex int) bool {
	for _, e := range d.pods {
		if _, ok := e.devices[ifindex]; ok {
			return true
		}
	}
	return false
}

// claim pins the link that Early made, if it is what the device has; false where the device has nothing of ours then. Called
// with mu held.
func (d *Datapath) claim(ifindex int) (claimed bool) {
	e := d.early[ifindex]
	if e == nil {
		return false
	}
	if e.taken { // the kernel takes a program once
		_ = d.unlocked(func() error { <-e.gone; return nil })
		return false
	}
	e.taken = true
	_ = d.unlocked(func() error {
		<-e.done
		if e.link == nil {
			return nil
		}
		// The number may be another device's by now, and another program may have gone before ours. To ask the link itself
		// would wait for the lock.
		now, err := d.heads.names()
		if claimed = err == nil && now.set()[ifindex] && e.link.Pin(d.pins.link(ifindex)) == nil; claimed {
			return e.link.Close()
		}
		return e.end()
	})
	d.forgetEarly(ifindex)
	return claimed
}

// end takes the program off again.
func (e *early) end() error {
	if <-e.done; e.link == nil {
		return nil
	}
	_ = e.link.Detach() // an iterator of anybody may hold the link for a moment longer; fails where the device is gone
	return e.link.Close()
}

// forgetEarly is called with mu held.
func (d *Datapath) forgetEarly(ifindex int) {
	close(d.early[ifindex].gone)
	delete(d.early, ifindex)
}

// letGo takes the program off devices that nobody claimed. Called with mu held.
func (d *Datapath) letGo(which func(*early) bool) error {
	var let []int
	for ifindex, e := range d.early {
		if !e.taken && which(e) {
			e.taken = true
			let = append(let, ifindex)
		}
	}
	var errs []error
	for _, ifindex := range let {
		errs = append(errs, d.unlocked(d.early[ifindex].end))
		d.forgetEarly(ifindex)
	}
	return errors.Join(errs...)
}

// Expect prepares for so many pods that are known and have no device yet; with none, it lets go of what nobody claimed. It
// waits for the kernel.
func (d *Datapath) Expect(pods int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects == nil {
		return nil
	}
	d.expected = pods
	now := time.Now()
	errs := []error{d.letGo(func(e *early) bool { return pods == 0 || now.Sub(e.from) > unclaimedAfter })}
	if d.heads == nil { // where hooks are looked at for each pod anyhow, a slot more or less does not show
		return errors.Join(errs...)
	}
	errs = append(errs, d.prepare(min(pods, maxSpare)-len(d.spare)))
	return errors.Join(append(errs, d.keepSpare(max(pods, keptSpare)))...)
}

// keepSpare frees spare slots down to so many: what has a table and no identity would be found by nobody. Called with mu held.
func (d *Datapath) keepSpare(keep int) error {
	for len(d.spare) > keep && d.objects != nil {
		slot := d.spare[len(d.spare)-1]
		d.spare = d.spare[:len(d.spare)-1]
		if err := d.free(slot); err != nil {
			d.spare = append(d.spare, slot)
			slices.Sort(d.spare)
			return fmt.Errorf("free slot %d: %w", slot, err)
		}
	}
	return nil
}

// prepare adds spare slots. Called with mu held.
func (d *Datapath) prepare(slots int) error {
	var group errgroup.Group
	group.SetLimit(preparedAtOnce)
	return d.unlocked(func() error {
		for range slots {
			group.Go(func() error {
				d.mu.Lock()
				defer d.mu.Unlock()
				if d.objects == nil {
					return nil
				}
				slot, err := d.newSlot()
				if err != nil {
					return fmt.Errorf("prepare for a pod: %w", err)
				}
				d.spare = append(d.spare, slot)
				slices.Sort(d.spare)
				return nil
			})
		}
		return group.Wait()
	})
}
