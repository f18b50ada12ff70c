// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// locate finds the devices of every pod that needs them, in one scan. What was found before is kept while it still
// stands in the kernel as it did.
func (e *Enforcer) locate(snapshot pods.Snapshot, reason Reason) error {
	scan, err := e.opts.Scan(reason.has(Resync))
	if err != nil {
		return fmt.Errorf("find pods' devices: %w", err)
	}
	now := e.now()
	defer func() {
		if !e.verify(scan, now) {
			scan.Close()
		}
	}()
	e.placed = false
	var searches []*search
	for _, pod := range snapshot.Pods {
		p := e.pods[pod.UID]
		if !e.needsDevice(pod) {
			if p != nil {
				p.query, p.found, p.err, p.retry, p.delay = device.Query{}, device.Found{}, nil, time.Time{}, 0
			}
			continue
		}
		if p == nil {
			p = &podState{}
			e.pods[pod.UID] = p
		}
		query := device.Query{UID: pod.UID, Netns: pod.Netns, Sandboxes: pod.Sandboxes, IPs: pod.IPs}
		same := query.Equal(p.query)
		there := p.err == nil && scan.Current(p.found.Devices)
		current := same && there
		// What the runtime told is taken back at the end of the pod's network: nobody is told where else to look.
		if there && p.seen && len(query.Sandboxes) == 0 && query.Netns == p.query.Netns && slices.Equal(query.IPs, p.query.IPs) {
			p.query, current = query, true
		}
		if current && (!reason.has(Resync) || e.resyncs%lookInside != 0) {
			continue
		}
		if reason.has(DevicesChanged) || !same {
			p.retry, p.delay = time.Time{}, 0
		}
		if p.err != nil && now.Before(p.retry) {
			continue
		}
		query.Left = p.seen && !there && !reason.has(Resync)
		query.Brief = !current && !reason.has(Resync)
		searches = append(searches, &search{uid: pod.UID, pod: p, limited: pod.Limited(), query: query, current: current})
	}
	together(len(searches), func(i int) { searches[i].make(scan) })
	for _, s := range searches {
		e.found(s, now)
	}
	return nil
}

// search is one look for a pod's devices.
type search struct {
	uid     string
	pod     *podState
	limited bool
	query   device.Query
	current bool // what was found before still stands, on the node
	whole   bool // and in the pod as well: there is nothing to find
	found   device.Found
	err     error
}

func (s *search) make(scan Scan) {
	if s.whole = s.current && scan.Whole(s.pod.found); s.whole {
		return
	}
	s.find(scan)
}

func (s *search) find(scan Scan) { s.found, s.err = scan.Find(s.query) }

// found takes what a search came to.
func (e *Enforcer) found(s *search, now time.Time) {
	p := s.pod
	// The pod may have changed its addresses, or another took one: what was found still leads out of the pod.
	if s.whole || s.current && device.Temporary(s.err) {
		return
	}
	e.placed = e.placed || s.err == nil && s.limited && !slices.Equal(s.found.Devices, p.found.Devices)
	p.query, p.found, p.err = s.query, s.found, s.err
	if s.err == nil {
		p.seen, p.verify = s.found.Told, now.Add(verifyAfter)
	}
	p.schedule(now)
}

// atOnce bounds how many questions wait for the kernel together, each on a thread of its own.
const atOnce = 8

// together calls f for 0 to n-1, several at once. Each look into a pod and each attachment waits for the kernel's lock of
// all network configuration; where many pods start, those who make their networks queue for it, and whoever asks for one
// pod after the other waits for the whole queue each time.
func together(n int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error {
			f(i)
			return nil
		})
	}
	_ = group.Wait() // of nothing that fails
}

// schedule sets when to look again without an event: soon at first, ever more rarely later.
func (p *podState) schedule(now time.Time) {
	nothing := p.query.Netns == "" && len(p.query.Sandboxes) == 0 && len(p.query.IPs) == 0 // to look by: its news is an event
	if !device.Temporary(p.err) || nothing {
		p.retry, p.delay = time.Time{}, 0
		return
	}
	p.delay = min(max(2*p.delay, minRetry), maxRetry)
	p.retry = now.Add(p.delay)
}

// needsDevice: unlimited pods' devices matter where fq holds the packets towards them.
func (e *Enforcer) needsDevice(pod pods.Pod) bool {
	if pod.HostNetwork || pod.Finished() {
		return false
	}
	return pod.Limited() || (e.opts.Veths && e.exits.Fq == nil && e.first)
}

// syncQdiscs looks at the exit devices where something may have changed them.
func (e *Enforcer) syncQdiscs(reason Reason) {
	if s, ok := e.syncing.take(); ok {
		e.exits, e.exitsErr = s.exits, s.err
	}
	var veths []int
	for _, p := range e.pods {
		for _, d := range p.found.Devices {
			veths = append(veths, d.Index)
		}
	}
	slices.Sort(veths)
	reason |= e.unsynced
	if e.first && !reason.has(Resync|DevicesChanged|RoutesChanged|QdiscsChanged) && slices.Equal(veths, e.veths) {
		e.unsynced = 0
		return
	}
	// Each look takes the kernel's lists, which are waited for while others add devices: not in each pass of many, and
	// after the pods that start now.
	now := e.now()
	if e.first && !reason.has(Resync) {
		if e.unsynced == 0 {
			e.owedAt = now
		}
		if now.Sub(e.syncedAt) < syncAtLeast || e.placed && now.Sub(e.owedAt) < syncAtLeast {
			e.unsynced = reason | PodsChanged // never none
			return
		}
	}
	// Those that are looked at meanwhile first: there is one look at a time.
	if e.syncing.goesOn() && !reason.has(Resync) {
		e.unsynced = reason | PodsChanged
		return
	}
	e.awaitSync()
	e.syncedAt, e.unsynced, e.veths = now, 0, veths
	if e.first && !reason.has(Resync) && len(veths) > manyVeths {
		e.syncing.begin(func() synced {
			exits, err := e.opts.Qdiscs.Sync(veths)
			return synced{exits, err}
		}, e.wakeForPass)
		return
	}
	e.exits, e.exitsErr = e.opts.Qdiscs.Sync(veths)
	if !e.first && e.opts.Veths && e.exits.Fq == nil {
		e.Poke(PodsChanged) // only now is it known that unlimited pods' devices matter
	}
	e.first = true
}

// synced is what a look at the exit devices came to.
type synced struct {
	exits qdisc.Result
	err   error
}

// awaitSync waits for the end of a look aside.
func (e *Enforcer) awaitSync() {
	if s, ok := e.syncing.wait(); ok {
		e.exits, e.exitsErr = s.exits, s.err
	}
}

// wakeForPass makes a pass, also among those that may wait.
func (e *Enforcer) wakeForPass() { e.Poke(PodsChanged) }

// mayWait puts a pass off that only routes, qdiscs or filters ask for: each device that comes changes some, and what looks
// at them is put off anyhow. Where the kernel tells of changed hooks in no other way, it may not.
func (e *Enforcer) mayWait(reason Reason) bool {
	now := e.now()
	if !e.first || reason == 0 || reason&^(RoutesChanged|QdiscsChanged) != 0 || !e.opts.Datapath.Features().TCX ||
		now.Sub(e.syncedAt) >= syncAtLeast || reason.has(QdiscsChanged) && e.opts.Rivals != nil && now.Sub(e.lookedAt) >= lookEvery {
		return false
	}
	if e.unsynced == 0 {
		e.owedAt = now
	}
	e.unsynced |= reason
	e.lookOwed = e.lookOwed || reason.has(QdiscsChanged) && e.opts.Rivals != nil
	e.turned()
	return true
}

// collect removes the limits of pods that are gone, that have finished, or whose author took the limit away. It goes
// before any limit is set: a new pod may have got a former one's device.
func (e *Enforcer) collect(snapshot pods.Snapshot, states map[string]datapath.State) []error {
	known := make(map[string]pods.Pod, len(snapshot.Pods))
	for _, pod := range snapshot.Pods {
		known[pod.UID] = pod
	}
	var gone []string
	for uid := range states {
		if pod, there := known[uid]; there && !pod.Limited() || !there && snapshot.Complete {
			gone = append(gone, uid)
		}
	}
	slices.Sort(gone)
	failed := make([]error, len(gone))
	together(len(gone), func(i int) { failed[i] = e.opts.Datapath.Remove(gone[i]) })
	var errs []error
	for i, uid := range gone {
		pod := states[uid].Pod
		if failed[i] != nil {
			errs = append(errs, fmt.Errorf("remove limit of %s: %w", pod, failed[i]))
			continue
		}
		delete(states, uid)
		_, there := known[uid]
		e.opts.Log.Info("limit removed", "pod", pod.String(), "uid", uid, "podGone", !there)
	}
	return errs
}

// apply sets every limited pod and keeps the verdicts.
func (e *Enforcer) apply(snapshot pods.Snapshot, states map[string]datapath.State, mode datapath.Mode) {
	var wishes []*wish
	for _, pod := range snapshot.Pods {
		p := e.pods[pod.UID]
		if !pod.Limited() {
			e.release(pod, p)
			continue
		}
		if p == nil {
			p = &podState{}
			e.pods[pod.UID] = p
		}
		state, held := states[pod.UID]
		verdict, w := e.decide(pod, p, state, held, mode)
		switch {
		case w == nil:
			e.keep(pod, p, verdict)
		case w.fulfilled:
			e.keep(pod, p, e.conclude(w))
		default:
			wishes = append(wishes, w)
		}
	}
	first, rest := apart(wishes)
	together(len(first), func(i int) { first[i].err = e.opts.Datapath.Set(first[i].limit) })
	for _, w := range rest {
		w.err = e.opts.Datapath.Set(w.limit)
	}
	for _, w := range wishes {
		e.keep(w.pod, w.state, e.conclude(w))
	}
}

// apart splits off the wishes for a device that an earlier one names: two pods may be found by one address or be said to
// have one namespace, and then the last one's limit holds, whole.
func apart(wishes []*wish) (first, rest []*wish) {
	claimed := map[int]bool{}
	for _, w := range wishes {
		shared := slices.ContainsFunc(w.limit.Devices, func(d datapath.Device) bool { return claimed[d.Index] })
		for _, d := range w.limit.Devices {
			claimed[d.Index] = true
		}
		if shared {
			rest = append(rest, w)
		} else {
			first = append(first, w)
		}
	}
	return first, rest
}

// wish is a limit that the kernel is to hold.
type wish struct {
	pod       pods.Pod
	state     *podState
	verdict   Verdict
	reasons   []string
	others    []rivals.Rival
	limit     datapath.Limit
	fulfilled bool // the kernel holds it
	err       error
}

// release forgets a verdict on a pod that wants no limit any more, or has finished.
func (e *Enforcer) release(pod pods.Pod, p *podState) {
	if p == nil {
		return
	}
	if p.logged && !pod.Finished() && e.opts.Observer != nil {
		e.opts.Observer.Released(pod)
	}
	p.verdict, p.told, p.logged = Verdict{}, false, false
}

// refuse gives every limited pod its verdict where nothing can be enforced at all.
func (e *Enforcer) refuse(snapshot pods.Snapshot, why *NotOpenError) {
	left := make(map[string]bandwidth.Rate, len(why.Left))
	for _, s := range why.Left {
		left[s.Pod.UID] = s.Rate
	}
	for _, pod := range snapshot.Pods {
		p := e.pods[pod.UID]
		if !pod.Limited() {
			e.release(pod, p)
			continue
		}
		if p == nil {
			p = &podState{}
			e.pods[pod.UID] = p
		}
		v := Verdict{Pod: pod.Pod, Origin: pod.Origin, Limit: pod.Rate, Code: codeOf(why), Reason: why.Error()}
		if rate := left[pod.UID]; rate != 0 {
			v.Reason += fmt.Sprintf("; the limit of %s that an earlier agent set stays in the kernel", rate)
		}
		if pod.HostNetwork {
			v.Code, v.Reason = CodeHostNetwork, device.ErrHostNetwork.Error()
		}
		e.keep(pod, p, v)
	}
}

// decide says which limit a pod is to have, or the verdict where it can have none.
func (e *Enforcer) decide(pod pods.Pod, p *podState, state datapath.State, held bool, mode datapath.Mode) (Verdict, *wish) {
	v := Verdict{Pod: pod.Pod, Origin: pod.Origin, Limit: pod.Rate, Mode: mode}
	if pod.Origin == pods.OriginCNI && held {
		v.Limit = state.Rate // the API server's last word is newer than what the pod started with
	}
	var reasons []string
	if pod.Err != nil {
		reasons = append(reasons, pod.Err.Error())
		if v.Limit = state.Rate; !held || v.Limit == 0 {
			v.Code, v.Reason = CodeInvalidLimit, reasons[0]
			return v, nil
		}
		reasons = append(reasons, fmt.Sprintf("the last good limit %s stays", v.Limit))
	}
	switch {
	case pod.HostNetwork:
		v.Code, v.Reason = CodeHostNetwork, device.ErrHostNetwork.Error()
		return v, nil
	case p.err != nil:
		v.Code, v.Reason = codeOf(p.err), strings.Join(append(reasons, p.err.Error()), "; ")
		return v, nil
	case len(p.found.Devices) == 0:
		v.Code, v.Reason = CodeFailed, strings.Join(append(reasons, "the pod's devices could not be looked for"), "; ")
		return v, nil
	}
	ours, others := e.share(p.found.Devices)
	if len(ours) == 0 {
		return e.standDown(p, v, held, others), nil
	}
	if redirected(others) {
		v.Mode = datapath.ModePolicing
	}
	if held && e.tooSoon(p, state) {
		return p.verdict, nil
	}
	limit := datapath.Limit{Pod: pod.Pod, Rate: v.Limit, Mode: v.Mode, Devices: ours}
	return v, &wish{
		pod: pod, state: p, verdict: v, reasons: reasons, others: others, limit: limit,
		// What an earlier agent set may differ in more than a state shows.
		fulfilled: p.set && held && !differs(state, limit),
	}
}

// conclude is the verdict on a pod once its limit was set, or could not be.
func (e *Enforcer) conclude(w *wish) Verdict {
	v, p, reasons := w.verdict, w.state, w.reasons
	if w.err != nil {
		v.Code, v.Reason = codeOf(w.err), strings.Join(append(reasons, w.err.Error()), "; ")
		e.retryAfterError(p)
		return v
	}
	p.set = true
	p.retry, p.delay = time.Time{}, 0
	v.Devices = w.limit.Devices
	v.Enforced, v.Code = len(p.found.Unheld) == 0, codeOfMode(v.Mode)
	if w.pod.Err != nil {
		v.Code = CodeLastGoodLimit
	}
	if !v.Enforced {
		v.Code = CodeNotAllHeld
		reasons = append(reasons, "not all that the pod sends is held: it has "+strings.Join(p.found.Unheld, ", ")+" as well")
	}
	switch {
	case len(v.Devices) < len(p.found.Devices):
		v.Enforced, v.Code = false, CodeOtherLimiter
		reasons = append(reasons, "not all that the pod sends is held: "+inCharge(w.others))
	case len(w.others) > 0:
		reasons = append(reasons, names(w.others)+" as well")
	}
	v.Reason = strings.Join(reasons, "; ")
	return v
}

// retryAfterError lets a failed Set be tried again by the same ever longer waits.
func (e *Enforcer) retryAfterError(p *podState) {
	p.delay = min(max(2*p.delay, minRetry), maxRetry)
	p.retry = e.now().Add(p.delay)
}

// differs reports whether the kernel's state is not what is wanted.
func differs(state datapath.State, want datapath.Limit) bool {
	if state.Rate != want.Rate || state.Mode != want.Mode || len(state.Devices) != len(want.Devices) {
		return true
	}
	for _, d := range want.Devices {
		i := slices.IndexFunc(state.Devices, func(have datapath.Device) bool { return have.Index == d.Index })
		if i < 0 || state.Devices[i].Hook == datapath.HookNone || state.Devices[i].Behind != "" {
			return true
		}
	}
	return false
}

// keep stores a verdict, logs it where it is new, and tells the observer: at once, but for a pod that may merely be
// starting or ending, after a while.
func (e *Enforcer) keep(pod pods.Pod, p *podState, v Verdict) {
	now := e.now()
	if !sameVerdict(p.verdict, v) || !p.logged {
		p.since, p.told, p.logged = now, false, true
		e.logVerdict(v, device.Temporary(p.err))
	}
	p.verdict = v
	if pod.Origin == pods.OriginCNI {
		return // nobody can be told: the observer is, once the API server knows the pod
	}
	if p.told || e.opts.Observer == nil {
		p.told = true
		return
	}
	if !v.Enforced && device.Temporary(p.err) && now.Sub(p.since) < grace {
		return
	}
	p.told = true
	if !pod.Terminating || v.Enforced {
		e.opts.Observer.Changed(pod, v)
	}
}

func sameVerdict(a, b Verdict) bool {
	return a.Enforced == b.Enforced && a.Limit == b.Limit && a.Mode == b.Mode && a.Code == b.Code && a.Reason == b.Reason && slices.Equal(a.Devices, b.Devices)
}

func (e *Enforcer) logVerdict(v Verdict, waiting bool) {
	names := make([]string, len(v.Devices))
	for i, d := range v.Devices {
		names[i] = d.Name
	}
	log := e.opts.Log.WithValues("pod", v.Pod.String(), "uid", v.UID, "limit", v.Limit.String())
	switch {
	case v.Enforced && v.Reason == "":
		log.Info("limit enforced", "devices", names, "mode", v.Mode.String())
	case v.Enforced:
		log.Info("limit enforced", "devices", names, "mode", v.Mode.String(), "note", v.Reason)
	case waiting:
		log.Info("limit waits for the pod's device", "reason", v.Reason)
	default:
		log.Error(errors.New(v.Reason), "limit is not enforced")
	}
}
