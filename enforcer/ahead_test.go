// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// until makes passes as Run would until done, and fails after a while.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for began := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			w.t.Fatalf("never: %s", what)
		}
		w.pass(w.takeAsked())
	}
}

func (k *kernel) lastExpected() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.expected) == 0 {
		return 0
	}
	return k.expected[len(k.expected)-1]
}

// TestPodsThatStartAreExpected: while a limited pod has no device, devices that come are attached to.
func TestPodsThatStartAreExpected(t *testing.T) {
	w := newWorld(t)
	watch := newWatcher(w.Enforcer)
	came := func(index int) (early bool) {
		watch.Came(device.Link{Device: datapath.Device{Index: index}})
		watch.attaching.Wait()
		return slices.Contains(w.kernel.early, index)
	}
	w.pod("there", "10M", "10.0.0.11")
	w.pod("unlimited", "", "")
	ended := w.pod("ended", "10M", "")
	ended.Phase = "Succeeded"
	w.pod("host", "10M", "").HostNetwork = true
	w.pass(Resync)
	if came(20) {
		t.Error("attached to a device while no limited pod starts")
	}
	w.pod("a", "10M", "")
	w.pod("b", "10M", "")
	w.pass(PodsChanged)
	w.until("2 pods are expected", func() bool { return w.kernel.lastExpected() == 2 })
	if !came(21) {
		t.Error("not attached to a device while limited pods start")
	}
	for i := range w.source.snapshot.Pods {
		if p := &w.source.snapshot.Pods[i]; p.Name == "a" || p.Name == "b" {
			ip := fmt.Sprintf("10.0.0.%d", 20+i)
			p.IPs = []netip.Addr{netip.MustParseAddr(ip)}
			w.network.found[ip] = found(20 + i)
		}
	}
	w.pass(PodsChanged)
	w.wantReason("a", true)
	w.until("nobody is expected", func() bool { return w.kernel.lastExpected() == 0 })
	if came(22) {
		t.Error("attached to a device when all pods have theirs")
	}
	// A pod that has lost its device, as at its end, is about to get none.
	delete(w.network.found, "10.0.0.11")
	w.source.snapshot.Pods[0].IPs = nil
	w.Enforcer.pods["uid-there"].seen = true
	w.pass(PodsChanged | DevicesChanged)
	if w.expected() != 0 {
		t.Errorf("%d pods expected; want none", w.expected())
	}
}

// TestUnclaimedDevicesAreLetGo: the datapath is asked again while a pod is expected for long, and when a number changes while
// it prepares.
func TestUnclaimedDevicesAreLetGo(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "")
	w.pass(Resync)
	w.until("prepared", func() bool { return !w.preparing.goesOn() && len(w.kernel.expected) == 1 })
	w.pass(PodsChanged)
	if w.preparing.goesOn() {
		t.Error("prepares again at once")
	}
	w.clock = w.clock.Add(prepareEvery)
	w.pass(PodsChanged)
	w.until("prepared again", func() bool { return !w.preparing.goesOn() && len(w.kernel.expected) == 2 })

	slow := &slowExpect{w.kernel, make(chan struct{})}
	w.opts.Datapath = slow
	w.pod("b", "10M", "")
	w.pass(PodsChanged) // begins to prepare for two
	w.source.snapshot.Pods = w.source.snapshot.Pods[:0]
	w.pass(PodsChanged)
	go func() { slow.end <- struct{}{}; close(slow.end) }()
	select {
	case <-w.wake:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody says that fewer are expected by now")
	}
	w.until("none is expected", func() bool { return w.kernel.lastExpected() == 0 })
}

// slowExpect prepares for as long as the test wants.
type slowExpect struct {
	*kernel
	end chan struct{}
}

func (k *slowExpect) Expect(pods int) error {
	<-k.end
	return k.kernel.Expect(pods)
}

// TestFoundOutsideIsLookedInto: a pod that starts is limited by what the node's side shows, and what else it has is seen soon.
func TestFoundOutsideIsLookedInto(t *testing.T) {
	w := newWorld(t)
	w.pass(Resync)
	w.network.brief = true
	p := w.pod("a", "10M", "10.0.0.11")
	p.Sandboxes = []cni.Sandbox{{Pod: p.Pod, ID: "1", Netns: "cni-a"}}
	w.pass(PodsChanged)
	w.wantReason("a", true)
	if q := w.network.asked["uid-a"]; !q.Brief {
		t.Errorf("asked %+v; want a brief look first", q)
	}
	if wait := w.untilRetry(); wait > verifyAfter {
		t.Errorf("next pass in %v; want a look into the pod within %v", wait, verifyAfter)
	}
	finds := w.network.finds
	w.pass(DevicesChanged)
	if w.network.finds != finds {
		t.Error("looked into at once")
	}
	whole := w.network.found["10.0.0.11"]
	whole.Unheld = []string{"net1 (macvlan)"}
	w.network.found["10.0.0.11"] = whole
	w.clock = w.clock.Add(verifyAfter)
	w.pass(0)
	w.until("the pod's other interface shows", func() bool { return w.verdict("a").Code == CodeNotAllHeld })
	w.wantReason("a", false, "net1 (macvlan)")
	if q := w.network.asked["uid-a"]; q.Brief || w.Enforcer.pods["uid-a"].found.Outside {
		t.Errorf("asked %+v; want a whole look", q)
	}
	// A full comparison never is brief.
	p = w.pod("b", "10M", "10.0.0.12")
	p.Sandboxes = []cni.Sandbox{{Pod: p.Pod, ID: "2", Netns: "cni-b"}}
	w.pass(Resync)
	if q := w.network.asked["uid-b"]; q.Brief || w.Enforcer.pods["uid-b"].found.Outside {
		t.Errorf("a full comparison asked %+v", q)
	}
}

// TestFoundOutsideAndGone: a look into a pod that ends meanwhile, or that another one has replaced, changes nothing.
func TestFoundOutsideAndGone(t *testing.T) {
	w := newWorld(t)
	w.pass(Resync)
	w.network.brief = true
	for i, name := range []string{"a", "b"} {
		p := w.pod(name, "10M", fmt.Sprintf("10.0.0.%d", 11+i))
		p.Sandboxes = []cni.Sandbox{{Pod: p.Pod, ID: name, Netns: "cni-" + name}}
	}
	w.pass(PodsChanged)
	w.clock = w.clock.Add(verifyAfter)
	w.network.mu.Lock()
	held := w.network.found["10.0.0.11"]
	delete(w.network.found, "10.0.0.11") // its namespace is gone, its device not yet
	w.network.still = held.Devices
	w.network.mu.Unlock()
	w.pass(0) // begins to look into both
	w.source.snapshot.Pods = w.source.snapshot.Pods[:1]
	w.until("the looks are over", func() bool { return !w.verifying.goesOn() })
	w.wantReason("a", true)
	if got := w.Enforcer.pods["uid-a"].found; !got.Outside {
		t.Errorf("a was found as %+v; want what was known of it", got)
	}
	if w.Enforcer.pods["uid-b"] != nil {
		t.Error("b is back")
	}
}

// TestNewDevicesAndOtherLimiters: who has been at work on a new device is told by notices; where none was, the pod does not
// wait for a look at it.
func TestNewDevicesAndOtherLimiters(t *testing.T) {
	for name, test := range map[string]struct {
		others int // pods that start as well
		before func(w *world, c *charge)
		waits  bool
	}{
		"nobody touched it":         {few + 1, func(*world, *charge) {}, false},
		"few start":                 {few, func(*world, *charge) {}, true},
		"somebody touched it":       {few + 1, func(w *world, _ *charge) { newWatcher(w.Enforcer).Filtered(11) }, true},
		"who is seen by no notice":  {few + 1, func(_ *world, c *charge) { c.unseen = true }, true},
		"hooks are told by notices": {few + 1, func(w *world, _ *charge) { w.kernel.features.TCX = false }, true},
	} {
		w, c := newWorld(t), &charge{found: map[int]rivals.Rival{11: {Who: "somebody", How: "police", Device: "veth"}}}
		w.kernel.features.TCX = true
		w.opts.Rivals, w.opts.OtherLimiters = c, rivals.StandDown
		w.pass(Resync)
		for i := range test.others {
			w.pod(fmt.Sprint("starts", i), "10M", "")
		}
		w.pass(PodsChanged)
		test.before(w, c)
		w.pod("a", "10M", "10.0.0.11")
		w.pass(PodsChanged)
		if v := w.verdict("a"); v.Enforced == test.waits {
			t.Errorf("%s: enforced %v at once; want %v", name, v.Enforced, !test.waits)
		}
		w.until(name+", and the other limiter is seen", func() bool { return w.verdict("a").Code == CodeOtherLimiter })
		if len(w.kernel.states) != 0 {
			t.Errorf("%s: the kernel still holds our limit", name)
		}
		asked := len(c.asked)
		w.pass(PodsChanged)
		if w.looking.goesOn() || len(c.asked) != asked {
			t.Errorf("%s: looked at again", name)
		}
	}
}

// TestWatcherForgets: what was looked at is known; of others' devices nobody tells when they end.
func TestWatcherForgets(t *testing.T) {
	w := newWorld(t)
	w.opts.Rivals = &charge{}
	watch := newWatcher(w.Enforcer)
	watch.Filtered(11)
	watch.Filtered(12)
	watch.Changed(rtnl.ChangeTC)
	if reason := w.takeAsked(); !w.isTouched(11) || reason != QdiscsChanged {
		t.Errorf("touched %v, asked for %v; want it, and a look at qdiscs", w.isTouched(11), reason)
	}
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	if w.isTouched(11) || !w.isTouched(12) {
		t.Errorf("device of a pod: %v, which nobody has looked at: %v; want the latter remembered", w.isTouched(11), w.isTouched(12))
	}
	for i := range maxTouched {
		watch.Filtered(100 + i)
	}
	if len(w.touched) > maxTouched || w.isTouched(12) {
		t.Errorf("%d devices are remembered", len(w.touched))
	}
}

// TestLaterLooksDoNotWinOverSooner: a device is filtered while it is looked at aside, and looked at again at once.
func TestLaterLooksDoNotWinOverSooner(t *testing.T) {
	w, c := newWorld(t), &charge{}
	w.kernel.features.TCX = true
	var isSlow atomic.Bool
	slow := &slowLook{c, func([]int) bool { return isSlow.Load() }, make(chan struct{}), make(chan map[int]rivals.Rival)}
	w.opts.Rivals, w.opts.OtherLimiters = slow, rivals.StandDown
	for i := range few + 1 {
		w.pod(fmt.Sprint("starts", i), "10M", "")
	}
	w.pass(Resync)
	isSlow.Store(true)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(PodsChanged)
	w.wantReason("a", true)
	<-slow.begun
	w.source.snapshot.Pods = w.source.snapshot.Pods[few+1:] // the others are gone: few start
	w.pass(PodsChanged)
	if len(c.asked) != 0 {
		t.Errorf("asked for %v while that look goes on", c.asked)
	}
	c.found = map[int]rivals.Rival{11: {Who: "somebody", How: "police", Device: "veth"}}
	newWatcher(w.Enforcer).Filtered(11)
	isSlow.Store(false)
	w.pass(PodsChanged)
	w.wantReason("a", false, "another limiter is in charge")
	slow.found <- nil
	w.until("the look aside is over", func() bool { return !w.looking.goesOn() })
	w.wantReason("a", false, "another limiter is in charge")
}

// TestPodsThatNeverStart: one that waits for something else for long is not expected.
func TestPodsThatNeverStart(t *testing.T) {
	w := newWorld(t)
	w.pod("stuck", "10M", "")
	w.pod("ending", "10M", "").Terminating = true
	w.pass(Resync)
	if w.expected() != 1 {
		t.Errorf("%d pods expected; want the one that does not end", w.expected())
	}
	w.clock = w.clock.Add(startsWithin)
	w.pass(0)
	if w.expected() != 0 {
		t.Errorf("%d pods expected after %v; want none", w.expected(), startsWithin)
	}
}
