// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// Rivals finds devices that another limiter is in charge of. It is asked by two goroutines at once.
type Rivals interface {
	Look(devices, exits []int) (map[int]rivals.Rival, error)
	// Unseen reports, cheaply, whether one may be in charge of a device of which no notice of qdiscs or filters tells.
	Unseen() bool
}

var _ Rivals = (*rivals.Scanner)(nil)

// RepairObserver is an Observer that is also told when somebody took a pod's limit off or hid it, once it is back.
type RepairObserver interface {
	Repaired(pod pods.Pod, what datapath.Repair)
}

const (
	// watchHooksEvery leaves time for a pass, so that a limit is back within a second.
	watchHooksEvery = 920 * time.Millisecond
	// repairEvery bounds how often a hook is put right: whoever removes it may be as stubborn.
	repairEvery = time.Second
	// lookEvery bounds looks for other limiters because filters changed: they may be our own.
	lookEvery = time.Second
)

// WatchHooks pokes the loop soon after somebody took our program off a device or went before it, where the kernel
// tells nobody, until ctx ends.
func (e *Enforcer) WatchHooks(ctx context.Context) error {
	t, err := newTick(watchHooksEvery)
	if err != nil {
		return err
	}
	defer t.close()
	defer context.AfterFunc(ctx, t.stop)()
	for {
		if err := t.wait(); ctx.Err() != nil {
			return nil //nolint:nilerr // it was stopped
		} else if err != nil {
			return err
		}
		if e.opts.Datapath.Disturbed() {
			e.Poke(HooksChanged)
		}
	}
}

// Repairs counts, by cause, the hooks that were put right since the agent started.
func (e *Enforcer) Repairs() map[datapath.Cause]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.repairs)
}

// tellRepairs logs, counts and tells of what the pass put right.
func (e *Enforcer) tellRepairs(snapshot pods.Snapshot) {
	list := e.opts.Datapath.Repairs()
	if len(list) == 0 {
		return
	}
	known := make(map[string]pods.Pod, len(snapshot.Pods))
	for _, pod := range snapshot.Pods {
		known[pod.UID] = pod
	}
	observer, _ := e.opts.Observer.(RepairObserver)
	for _, r := range list {
		e.opts.Log.Info("limit was disturbed and is in force again", "pod", r.Pod.String(), "uid", r.Pod.UID, "cause", string(r.Cause), "what", r.String())
		e.mu.Lock()
		e.repairs[r.Cause]++
		e.mu.Unlock()
		if pod, ok := known[r.Pod.UID]; ok && observer != nil {
			observer.Repaired(pod, r)
		}
	}
}

// isDisturbed reports whether a device of a pod lacks our program, or has others before it.
func isDisturbed(state datapath.State) bool {
	for _, d := range state.Devices {
		if d.Hook == datapath.HookNone || d.Behind != "" {
			return true
		}
	}
	return false
}

// tooSoon puts a repair off that comes too soon after the last one of the same pod.
func (e *Enforcer) tooSoon(p *podState, state datapath.State) bool {
	if !isDisturbed(state) {
		return false
	}
	now := e.now()
	if next := p.repaired.Add(repairEvery); p.logged && now.Before(next) {
		p.retry = next
		return true
	}
	p.repaired = now
	return false
}

// survey is what a look for other limiters came to.
type survey struct {
	devices []device.Link
	found   map[int]rivals.Rival
	err     error
}

// lookForRivals looks at devices that are new, and at all of them where filters changed or at a resync. Of many, and of new
// ones at which nobody can be seen to have done anything, aside: each question is waited for while others add devices.
func (e *Enforcer) lookForRivals(reason Reason) error {
	if e.opts.Rivals == nil {
		return nil
	}
	var errs []error
	if s, ok := e.looking.take(); ok {
		// What a pass looked at itself meanwhile is newer.
		s.devices = slices.DeleteFunc(s.devices, func(d device.Link) bool { return e.later[d] && e.looked[d] })
		errs = append(errs, e.surveyed(s))
	}
	now, full := e.now(), reason.has(Resync)
	e.lookOwed = e.lookOwed || reason.has(QdiscsChanged)
	all := full || e.lookOwed && now.Sub(e.lookedAt) >= lookEvery
	if full {
		_, _ = e.looking.wait() // older than what comes now
	}
	all = all && !e.looking.goesOn()
	there := map[device.Link]bool{}
	var known, fresh []device.Link
	for _, p := range e.pods {
		for _, d := range p.found.Devices {
			if there[d] = e.looked[d]; e.looked[d] {
				known = append(known, d)
			} else if !e.looking.goesOn() || !e.later[d] || e.isTouched(d.Index) {
				fresh = append(fresh, d)
			}
		}
	}
	e.looked = there
	var exits []int
	for _, d := range e.exits.Exits {
		exits = append(exits, d.Index)
	}
	soon, later := e.urgent(fresh, full)
	if !e.looking.goesOn() {
		e.later = map[device.Link]bool{}
		for _, d := range later {
			e.later[d] = true
		}
	}
	if all {
		e.lookedAt, e.lookOwed = now, false
		if full || len(known) <= manyVeths {
			soon = append(soon, known...)
		} else {
			later = append(later, known...)
		}
	}
	if len(later) > 0 && !e.looking.goesOn() {
		e.looking.begin(func() survey { return look(e.opts.Rivals, later, exits) }, e.wakeForPass)
	}
	if len(soon) > 0 {
		e.untouch(soon)
		errs = append(errs, e.surveyed(look(e.opts.Rivals, soon, exits)))
	}
	return errors.Join(errs...)
}

// urgent splits new devices: at some somebody may have been at work already, and their pods wait for the answer, as all do
// where few start. Without tcx each device that is limited is asked for its filters anyhow.
func (e *Enforcer) urgent(fresh []device.Link, full bool) (soon, later []device.Link) {
	if len(fresh) == 0 {
		return nil, nil
	}
	if full || e.expected() <= few || !e.opts.Datapath.Features().TCX || e.opts.Rivals.Unseen() {
		return fresh, nil
	}
	for _, d := range fresh {
		if e.isTouched(d.Index) {
			soon = append(soon, d)
		} else {
			later = append(later, d)
		}
	}
	return soon, later
}

func look(r Rivals, devices []device.Link, exits []int) survey {
	indexes := make([]int, len(devices))
	for i, d := range devices {
		indexes[i] = d.Index
	}
	found, err := r.Look(indexes, exits)
	return survey{devices, found, err}
}

// surveyed takes a look's findings on devices that are still those that were looked at.
func (e *Enforcer) surveyed(s survey) error {
	for _, d := range s.devices {
		if _, there := e.looked[d]; !there {
			continue
		}
		e.looked[d] = true
		delete(e.rivals, d.Index)
		if r, ok := s.found[d.Index]; ok {
			e.rivals[d.Index] = r
		}
	}
	if s.err != nil {
		return fmt.Errorf("look for other limiters: %w", s.err)
	}
	return nil
}

// share returns the devices of a pod that are ours to hold, and who is in charge of the others, or (TakeOver) limits
// them as well.
func (e *Enforcer) share(found []device.Link) (ours []datapath.Device, others []rivals.Rival) {
	for _, d := range found {
		r, rival := e.rivals[d.Index]
		if rival {
			others = append(others, r)
		}
		if !rival || e.opts.OtherLimiters == rivals.TakeOver {
			ours = append(ours, d.Device)
		}
	}
	return ours, others
}

// standDown leaves a pod to others, and takes our own limit away if there is one.
func (e *Enforcer) standDown(p *podState, v Verdict, held bool, others []rivals.Rival) Verdict {
	v.Code, v.Reason = CodeOtherLimiter, inCharge(others)
	if held {
		if err := e.opts.Datapath.Remove(v.UID); err != nil {
			v.Code, v.Reason = CodeFailed, v.Reason+"; "+err.Error()
			e.retryAfterError(p)
			return v
		}
		e.opts.Log.Info("limit removed", "pod", v.Pod.String(), "uid", v.UID, "otherLimiter", names(others))
	}
	p.retry, p.delay = time.Time{}, 0
	return v
}

func inCharge(others []rivals.Rival) string { return "another limiter is in charge: " + names(others) }

func names(others []rivals.Rival) string {
	texts := make([]string, len(others))
	for i, r := range others {
		texts[i] = r.String()
	}
	return strings.Join(texts, "; ")
}

// redirected: what one of them takes to another device loses its departure time, and can be policed only.
func redirected(others []rivals.Rival) bool {
	for _, r := range others {
		if r.Redirects {
			return true
		}
	}
	return false
}
