// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// Enforcer is the loop. Poke, Status and Ready may be called from any goroutine.
type Enforcer struct {
	opts Options
	wake chan struct{} // a pass is wanted
	now  func() time.Time
	beat time.Duration // how often a loop that has nothing to do says that it turns

	mu     sync.Mutex
	asked  Reason // what was asked for since the last pass
	status Status
	ready  error     // why it is not; nil where it is
	synced bool      // a pass was made with all pods known
	passed time.Time // when the loop turned last
	// repairs counts hooks that were put right, by cause.
	repairs map[datapath.Cause]uint64
	// expecting is how many limited pods have no device yet; touched are devices, by ifindex, whose qdiscs or filters
	// changed and which were not looked at since.
	expecting int
	touched   map[int]bool

	// The rest belongs to the loop.
	pods     map[string]*podState // by UID
	exits    qdisc.Result
	exitsErr error
	veths    []int
	resyncs  int
	placed   bool      // the latest search found devices of a pod to limit
	unsynced Reason    // why the exit devices are to be looked at, put off
	owedAt   time.Time // since when
	syncedAt time.Time
	syncing  aside[synced]   // at the exit devices
	first    bool            // a pass has been made
	failed   bool            // the latest pass could not do its work
	problems map[string]bool // already logged
	rivals   map[int]rivals.Rival
	looked   map[device.Link]bool // pods' devices; true: looked at for rivals
	lookedAt time.Time            // at all of them
	lookOwed bool                 // a look at all came too soon after the last one
	looking  aside[survey]        // at all of them, and at new ones that nobody touched
	later    map[device.Link]bool // the new ones among them

	prepared   int // pods that the datapath prepared for
	preparedAt time.Time
	preparing  aside[error]
	verifying  aside[[]*search]

	unwritten bool      // the status file is not what the status is
	writtenAt time.Time // when it was
}

// Reason is a set of reasons for a pass.
type Reason uint8

const (
	// PodsChanged: the source has news.
	PodsChanged Reason = 1 << iota
	// DevicesChanged: a device or a network namespace came or went, so that a missing one may be there now.
	DevicesChanged
	// RoutesChanged: packets may leave by other devices.
	RoutesChanged
	// QdiscsChanged: somebody may have taken fq or our program away.
	QdiscsChanged
	// HooksChanged: somebody took our program off a device or went before it.
	HooksChanged
	// Resync: compare everything, whatever the events said.
	Resync
)

func (r Reason) has(what Reason) bool { return r&what != 0 }

// podState is what the loop remembers of one pod from pass to pass.
type podState struct {
	query   device.Query
	found   device.Found
	err     error // of the latest search
	retry   time.Time
	verify  time.Time // where found.Outside: when to look into it
	delay   time.Duration
	seen    bool // the runtime told of the pod's network when it was there
	verdict Verdict
	since   time.Time // of the verdict
	told    bool      // the observer knows the verdict
	logged  bool

	set      bool      // by this agent
	repaired time.Time // when our program was last put back or brought to the front
}

// Poke asks for a pass soon.
func (e *Enforcer) Poke(r Reason) {
	e.ask(r)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run makes passes until ctx ends; it returns nil then, and leaves every limit in force.
func (e *Enforcer) Run(ctx context.Context) error {
	ticker := time.NewTicker(e.opts.Resync)
	defer ticker.Stop()
	beat := time.NewTicker(e.beat)
	defer beat.Stop()
	defer e.write()
	defer e.await()
	reason := Resync
	for {
		start := e.now()
		if made := e.pass(reason); made && e.opts.Passed != nil {
			e.opts.Passed(e.now().Sub(start))
		}
		if e.opts.Compared != nil && reason.has(Resync) {
			e.opts.Compared()
		}
		retry := time.NewTimer(e.untilRetry())
		for beats := true; beats; {
			beats = false
			select {
			case <-ctx.Done():
			case <-e.opts.Source.Changes():
				e.ask(PodsChanged)
			case <-ticker.C:
				e.ask(Resync)
			case <-e.wake:
			case <-retry.C:
			case <-beat.C:
				e.turned()
				beats = true
			}
		}
		retry.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		reason = e.takeAsked()
	}
}

// await waits for the end of all that goes on aside.
func (e *Enforcer) await() {
	e.awaitSync()
	_, _ = e.looking.wait()
	_, _ = e.preparing.wait()
	_, _ = e.verifying.wait()
}

func (e *Enforcer) ask(r Reason) {
	e.mu.Lock()
	e.asked |= r
	e.mu.Unlock()
}

// takeAsked answers every Poke until now: those that came while things settled must not make one more pass.
func (e *Enforcer) takeAsked() Reason {
	select {
	case <-e.wake:
	default:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	asked := e.asked
	e.asked = 0
	return asked
}

// untilRetry is how long the loop may wait for an event.
func (e *Enforcer) untilRetry() time.Duration {
	now, wait := e.now(), e.opts.Resync
	for _, p := range e.pods {
		if !p.retry.IsZero() {
			wait = min(wait, p.retry.Sub(now))
		}
		if p.found.Outside && !e.verifying.goesOn() {
			wait = min(wait, p.verify.Sub(now))
		}
		if p.logged != p.told && p.verdict.Origin != pods.OriginCNI { // the observer is told after a while
			wait = min(wait, p.since.Add(grace).Sub(now))
		}
	}
	if e.unsynced != 0 && !e.syncing.goesOn() { // else its end wakes the loop
		wait = min(wait, e.syncedAt.Add(syncAtLeast).Sub(now))
	}
	if e.unwritten {
		wait = min(wait, e.writtenAt.Add(writeAtMost).Sub(now))
	}
	if e.prepared > 0 && !e.preparing.goesOn() { // what nobody claimed is let go
		wait = min(wait, e.preparedAt.Add(prepareEvery).Sub(now))
	}
	if e.lookOwed && !e.looking.goesOn() {
		wait = min(wait, e.lookedAt.Add(lookEvery).Sub(now))
	}
	if e.failed {
		return max(wait, failedRetry)
	}
	return max(wait, time.Millisecond)
}

// ErrStarting means that not all of this node's pods were compared yet.
var ErrStarting = errors.New("not all pods of this node are known yet")

// Readiness says why limits are not kept on this node, or nil: a pass was made with all of its pods known, and the
// latest one could work with the kernel. It is ErrStarting before the first.
func (e *Enforcer) Readiness() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready
}

// Ready reports whether limits are kept on this node.
func (e *Enforcer) Ready() bool { return e.Readiness() == nil }

func (e *Enforcer) setReady(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready = err
}

// readiness is what a pass says of it. What the kernel lacks for one pod it lacks for all.
func (e *Enforcer) readiness(complete bool, stateErr error) error {
	e.synced = e.synced || complete
	switch {
	case stateErr != nil:
		return stateErr
	case !e.synced:
		return ErrStarting
	}
	for _, p := range e.pods {
		if p.verdict.Code == CodeKernelLacks {
			return errors.New("no limit can be set on this node: " + p.verdict.Reason)
		}
	}
	return nil
}

// Alive reports whether the loop still turns.
func (e *Enforcer) Alive() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.passed.IsZero() || e.now().Sub(e.passed) < 3*beatEvery
}

// turned notes that the loop turns, also where there is nothing to do.
func (e *Enforcer) turned() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.passed = e.now()
}

// Status of the latest pass.
func (e *Enforcer) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}

// pass compares everything that is wanted with everything that is, and changes the difference; it reports false where it was
// put off.
func (e *Enforcer) pass(reason Reason) bool {
	if e.mayWait(reason) {
		return false
	}
	snapshot := e.opts.Source.Snapshot()
	states, stateErr := e.states(reason)
	problems := append(append([]error(nil), e.opts.Problems...), snapshot.Problems...)
	if stateErr != nil {
		problems = append(problems, stateErr)
	}
	e.forget(snapshot)
	if reason.has(Resync) {
		e.resyncs++
	}
	locateErr := e.locate(snapshot, reason)
	if locateErr != nil {
		problems = append(problems, locateErr)
	}
	e.failed = stateErr != nil || locateErr != nil
	defer func() { e.setReady(e.readiness(snapshot.Complete, stateErr)) }()
	if closed := (*NotOpenError)(nil); errors.As(stateErr, &closed) {
		e.refuse(snapshot, closed)
		e.logProblems(problems)
		e.publish(snapshot, "none", closed.Err.Error(), problems)
		return true
	}
	e.syncQdiscs(reason)
	if e.exitsErr != nil {
		problems = append(problems, e.exitsErr)
	}
	if err := e.lookForRivals(reason); err != nil {
		problems = append(problems, err)
	}
	mode, why := DecideMode(e.opts.Datapath.Features(), e.exits, e.exitsErr)
	if stateErr == nil {
		problems = append(problems, e.collect(snapshot, states)...)
		e.apply(snapshot, states, mode)
		e.tellRepairs(snapshot)
	}
	e.expect(snapshot)
	e.logProblems(problems)
	e.publish(snapshot, mode.String(), why, problems)
	return true
}

// states looks at the hooks themselves where they may not be what they were.
func (e *Enforcer) states(reason Reason) (map[string]datapath.State, error) {
	read := e.opts.Datapath.Known
	if reason.has(Resync | HooksChanged) {
		read = e.opts.Datapath.States
	}
	list, err := read()
	if err != nil {
		return nil, err
	}
	states := make(map[string]datapath.State, len(list))
	for _, s := range list {
		states[s.Pod.UID] = s
	}
	return states, nil
}

// forget drops what is remembered of pods that are gone.
func (e *Enforcer) forget(snapshot pods.Snapshot) {
	if !snapshot.Complete {
		return
	}
	there := make(map[string]bool, len(snapshot.Pods))
	for _, pod := range snapshot.Pods {
		there[pod.UID] = true
	}
	for uid := range e.pods {
		if !there[uid] {
			delete(e.pods, uid)
		}
	}
}
