// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// meeting lets callers go on once two of them are there.
type meeting struct {
	mu   sync.Mutex
	came int
	both chan struct{}
}

func newMeeting() *meeting { return &meeting{both: make(chan struct{})} }

func (m *meeting) join(t *testing.T, what string) {
	m.mu.Lock()
	if m.came++; m.came == 2 {
		close(m.both)
	}
	m.mu.Unlock()
	select {
	case <-m.both:
	case <-time.After(10 * time.Second):
		t.Errorf("%s: one after the other", what)
	}
}

// slowKernel is one in which everything waits.
type slowKernel struct {
	*kernel
	t            *testing.T
	sets, remove *meeting
}

func (k *slowKernel) Set(l datapath.Limit) error {
	k.sets.join(k.t, "limits are set")
	return k.kernel.Set(l)
}

func (k *slowKernel) Remove(uid string) error {
	k.remove.join(k.t, "limits are removed")
	return k.kernel.Remove(uid)
}

type slowNetwork struct {
	*network
	t     *testing.T
	finds *meeting
}

func (n *slowNetwork) Find(q device.Query) (device.Found, error) {
	n.finds.join(n.t, "devices are looked for")
	return n.network.Find(q)
}

// TestPodsDoNotWaitForEachOther: each question waits for a lock of the kernel for which others queue.
func TestPodsDoNotWaitForEachOther(t *testing.T) {
	w := newWorld(t)
	w.opts.Datapath = &slowKernel{w.kernel, t, newMeeting(), newMeeting()}
	w.opts.Scan = func(bool) (Scan, error) { return &slowNetwork{w.network, t, newMeeting()}, nil }
	for i := range 3 * atOnce {
		w.pod(fmt.Sprintf("p%02d", i), "10M", fmt.Sprintf("10.0.0.%d", 10+i))
	}
	w.pass(Resync)
	for i := range 3 * atOnce {
		name := fmt.Sprintf("p%02d", i)
		w.wantLimit(name, "10M", datapath.ModePacing)
		if v := w.verdict(name); !v.Enforced || v.Devices[0].Index != 10+i {
			t.Errorf("%s: %+v; want it enforced on device %d", name, v, 10+i)
		}
	}
	w.source.snapshot.Pods = nil
	w.pass(PodsChanged)
	if len(w.kernel.states) != 0 {
		t.Errorf("left: %v", w.kernel.states)
	}
}

// slowExits looks for as long as the test wants.
type slowExits struct {
	mu     sync.Mutex
	looks  int
	end    chan struct{}
	result qdisc.Result
}

func (x *slowExits) Sync([]int) (qdisc.Result, error) {
	x.mu.Lock()
	x.looks++
	x.mu.Unlock()
	<-x.end
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.result, nil
}

func (x *slowExits) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.looks
}

// crowd is a world whose first look at the exits is over, with so many pods that the next ones are made aside.
func crowd(t *testing.T) (*world, *slowExits) {
	w := newWorld(t)
	w.kernel.features.TCX = true
	x := &slowExits{end: make(chan struct{}, 1), result: w.exits.result}
	w.opts.Qdiscs = x
	for i := range manyVeths + 1 {
		w.pod(fmt.Sprintf("p%02d", i), "10M", fmt.Sprintf("10.0.0.%d", 10+i))
	}
	x.end <- struct{}{}
	w.pass(Resync)
	w.clock = w.clock.Add(syncAtLeast)
	return w, x
}

// TestPodsDoNotWaitForTheExits: on a node full of pods the devices where packets leave are looked at meanwhile.
func TestPodsDoNotWaitForTheExits(t *testing.T) {
	w, x := crowd(t)
	x.result.Exits = nil // the node loses its fq
	w.pass(RoutesChanged)
	w.pod("late", "10M", "10.0.0.200")
	w.pass(PodsChanged | RoutesChanged)
	w.wantLimit("late", "10M", datapath.ModePacing)
	if w.unsynced == 0 {
		t.Error("what changed during a look is not looked at again")
	}
	x.end <- struct{}{}
	select {
	case <-w.wake:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody says that the look is over")
	}
	w.pass(w.takeAsked() | RoutesChanged) // which alone may wait
	w.wantLimit("late", "10M", datapath.ModePolicing)
	if got := x.count(); got != 2 || w.syncing.goesOn() {
		t.Errorf("%d looks, another one aside: %v; want 2, and the next put off", got, w.syncing.goesOn())
	}
	w.clock = w.clock.Add(syncAtLeast)
	w.pass(0)
	// A full comparison wants the truth: it waits for the one that runs, and looks itself.
	x.end <- struct{}{}
	w.opts.Scan = func(bool) (Scan, error) {
		x.mu.Lock()
		x.result = qdisc.Result{Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "fq", Paced: true}}}
		x.mu.Unlock()
		return w.network, nil
	}
	go func() { x.end <- struct{}{} }()
	w.pass(Resync)
	w.wantLimit("late", "10M", datapath.ModePacing)
	if got := x.count(); got != 4 {
		t.Errorf("%d looks; want 4", got)
	}
}

// TestRunAwaitsALookAside: nothing of the agent touches qdiscs once Run has returned.
func TestRunAwaitsALookAside(t *testing.T) {
	w, x := crowd(t)
	w.now = time.Now
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	x.end <- struct{}{} // of the pass that Run begins with
	go func() { done <- w.Run(ctx) }()
	for began := time.Now(); x.count() < 3; time.Sleep(time.Millisecond) {
		w.Poke(RoutesChanged)
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d looks; want one aside", x.count())
		}
	}
	cancel()
	select {
	case err := <-done:
		t.Fatalf("Run returned %v while a look runs", err)
	case <-time.After(50 * time.Millisecond):
	}
	x.end <- struct{}{}
	if err := <-done; err != nil || w.syncing.goesOn() {
		t.Errorf("Run returned %v, a look left: %v", err, w.syncing.goesOn())
	}
}

// TestRoutesAndFiltersMayWait: each device that comes changes some.
func TestRoutesAndFiltersMayWait(t *testing.T) {
	w := newWorld(t)
	w.opts.StatusFile = ""
	w.opts.Rivals = &charge{}
	w.kernel.features.TCX = true
	w.pass(Resync)
	w.pod("a", "10M", "10.0.0.11") // shows whether a pass is made
	made := func(reason Reason) bool {
		t.Helper()
		before := len(w.Status().Pods)
		w.pass(reason)
		return len(w.Status().Pods) != before
	}
	if made(RoutesChanged) || made(QdiscsChanged) || made(RoutesChanged|QdiscsChanged) {
		t.Error("a pass that only routes and filters ask for is made right after one")
	}
	w.opts.Rivals, w.lookOwed = nil, false
	if made(QdiscsChanged) || w.lookOwed {
		t.Error("a look for other limiters is owed where none are looked for")
	}
	w.opts.Rivals = &charge{}
	w.pass(QdiscsChanged)
	if wait := w.untilRetry(); wait > syncAtLeast || w.unsynced == 0 || !w.lookOwed {
		t.Errorf("the next pass in %v, owed %v and %v", wait, w.unsynced, w.lookOwed)
	}
	if !made(RoutesChanged | PodsChanged) {
		t.Error("a pod waits as well")
	}
	w.pod("b", "10M", "10.0.0.12")
	w.clock = w.clock.Add(syncAtLeast)
	if syncs := w.exits.syncs; !made(RoutesChanged) || w.exits.syncs == syncs {
		t.Error("a change of routes after a while is not looked at")
	}
	w.clock = w.clock.Add(lookEvery)
	w.pass(RoutesChanged) // routes and rivals are looked at
	w.pod("c", "10M", "10.0.0.13")
	w.kernel.features.TCX = false
	if !made(QdiscsChanged) {
		t.Error("where only notices of filters tell that a hook was disturbed, they wait")
	}
}

// TestStatusFileIsNotWrittenWithEachPass: with 250 pods it takes as long as all else in a pass.
func TestStatusFileIsNotWrittenWithEachPass(t *testing.T) {
	w := newWorld(t)
	inFile := func() int {
		t.Helper()
		s, err := ReadStatus(filepath.Dir(w.opts.StatusFile))
		if err != nil {
			t.Fatal(err)
		}
		return len(s.Pods)
	}
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	w.pod("b", "10M", "10.0.0.12")
	w.pass(PodsChanged)
	if got, wait := inFile(), w.untilRetry(); got != 1 || wait > writeAtMost {
		t.Errorf("%d pods in the file, next pass in %v; want 1, and the next within %v", got, wait, writeAtMost)
	}
	w.clock = w.clock.Add(writeAtMost)
	w.pass(0)
	if got := inFile(); got != 2 || w.unwritten {
		t.Errorf("%d pods in the file, more to write: %v; want 2, and nothing", got, w.unwritten)
	}
	w.pod("c", "10M", "10.0.0.13").Rate = bandwidth.Megabit
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
	if got := inFile(); got != 3 {
		t.Errorf("%d pods in the file of an agent that ended; want 3", got)
	}
}

// TestPodsThatShareADevice are not limited at the same time: one of them is to hold it, whole.
func TestPodsThatShareADevice(t *testing.T) {
	on := func(name string, devices ...int) *wish {
		w := &wish{limit: datapath.Limit{Pod: datapath.Pod{Name: name}}}
		for _, d := range devices {
			w.limit.Devices = append(w.limit.Devices, datapath.Device{Index: d})
		}
		return w
	}
	namesOf := func(wishes []*wish) (names string) {
		for _, w := range wishes {
			names += w.limit.Pod.Name
		}
		return names
	}
	first, rest := apart([]*wish{on("a", 1), on("b", 2), on("c", 3, 1), on("d", 4), on("e", 3)})
	if namesOf(first) != "abd" || namesOf(rest) != "ce" {
		t.Errorf("at once %q, then %q; want abd, then ce", namesOf(first), namesOf(rest))
	}
}
