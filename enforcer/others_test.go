// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// charge says who is in charge of which device.
type charge struct {
	mu     sync.Mutex
	found  map[int]rivals.Rival
	asked  [][]int
	unseen bool
}

func (c *charge) Look(devices, _ []int) (map[int]rivals.Rival, error) {
	devices = slices.Clone(devices)
	slices.Sort(devices)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, devices)
	return c.found, nil
}

func (c *charge) Unseen() bool { return c.unseen }

func (w *world) Repaired(pod pods.Pod, r datapath.Repair) {
	w.told = append(w.told, pod.Name+" repaired: "+r.String())
}

func withRivals(t *testing.T, policy rivals.Policy) (*world, *charge) {
	w, c := newWorld(t), &charge{found: map[int]rivals.Rival{
		11: {Who: "the CNI bandwidth plugin", How: "tbf on bwp1, to which veth redirects", Device: "veth", Redirects: true},
	}}
	w.opts.Rivals, w.opts.OtherLimiters = c, policy
	w.pod("a", "10M", "10.0.0.11")
	w.pod("b", "10M", "10.0.0.12")
	return w, c
}

func TestStandDown(t *testing.T) {
	w, c := withRivals(t, rivals.StandDown)
	w.pass(Resync)
	w.wantReason("a", false, "another limiter is in charge: the CNI bandwidth plugin limits what the pod sends (tbf on bwp1")
	if v := w.verdict("a"); v.Code != CodeOtherLimiter || len(v.Devices) != 0 {
		t.Errorf("verdict %+v; want %s and no device", v, CodeOtherLimiter)
	}
	w.wantReason("b", true)
	if len(w.kernel.states) != 1 {
		t.Errorf("kernel holds %v; want b alone", w.kernel.states)
	}
	if len(w.told) == 0 || !strings.Contains(w.told[0], "another limiter is in charge") {
		t.Errorf("told %q; want the other limiter named", w.told)
	}

	// It goes, and we limit; it comes back, and we stand down.
	other := c.found
	c.found = nil
	w.clock = w.clock.Add(lookEvery)
	w.pass(QdiscsChanged)
	w.wantReason("a", true)
	w.wantLimit("a", "10M", datapath.ModePacing)
	c.found = other
	w.pass(QdiscsChanged) // too soon to look again, not forgotten
	w.wantReason("a", true)
	if wait := w.untilRetry(); wait > lookEvery {
		t.Errorf("next pass in %v; want %v at most", wait, lookEvery)
	}
	w.clock = w.clock.Add(lookEvery)
	w.pass(0)
	w.wantReason("a", false, "another limiter is in charge")
	if _, held := w.kernel.states["uid-a"]; held {
		t.Error("the kernel still holds our limit")
	}
}

func TestTakeOver(t *testing.T) {
	w, _ := withRivals(t, rivals.TakeOver)
	w.pass(Resync)
	// What is redirected loses its departure time.
	w.wantLimit("a", "10M", datapath.ModePolicing)
	w.wantLimit("b", "10M", datapath.ModePacing)
	w.wantReason("a", true, "the CNI bandwidth plugin limits what the pod sends", "as well")
	if v := w.verdict("a"); v.Code != CodePolicing || v.Mode != datapath.ModePolicing {
		t.Errorf("verdict %+v; want policing", v)
	}
	sets := w.kernel.sets
	w.pass(QdiscsChanged)
	if w.kernel.sets != sets {
		t.Error("set again without a change")
	}
}

func TestOtherLimiterOnOneOfTwoDevices(t *testing.T) {
	w, _ := withRivals(t, rivals.StandDown)
	w.network.found["10.0.0.11"] = device.Found{Devices: append(found(11).Devices, found(21).Devices...)}
	w.pass(Resync)
	w.wantReason("a", false, "not all that the pod sends is held: another limiter is in charge")
	if got := w.kernel.states["uid-a"].Devices; len(got) != 1 || got[0].Index != 21 {
		t.Errorf("devices %v; want the other one held", got)
	}
}

func TestRivalsAreLookedForWhereNeeded(t *testing.T) {
	w, c := withRivals(t, rivals.StandDown)
	w.pass(PodsChanged)
	w.pass(PodsChanged)
	w.pod("new", "10M", "10.0.0.13")
	w.pass(PodsChanged)
	w.pass(DevicesChanged)
	w.pass(Resync)
	if diff := cmp.Diff([][]int{{11, 12}, {13}, {11, 12, 13}}, c.asked); diff != "" {
		t.Errorf("looked at (-want +got):\n%s", diff)
	}
}

func TestDisturbedHookIsPutRight(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	for name, disturb := range map[string]func(d *datapath.Device){
		"removed": func(d *datapath.Device) { d.Hook = datapath.HookNone },
		"hidden":  func(d *datapath.Device) { d.Behind = "program x" },
	} {
		w.clock = w.clock.Add(repairEvery)
		sets := w.kernel.sets
		disturb(&w.kernel.states["uid-a"].Devices[0])
		w.pass(HooksChanged)
		if w.kernel.sets != sets+1 {
			t.Errorf("%s: %d sets; want one", name, w.kernel.sets-sets)
		}
		// Somebody is stubborn: once a second, and the wait is not forgotten.
		disturb(&w.kernel.states["uid-a"].Devices[0])
		for range 5 {
			w.pass(QdiscsChanged)
		}
		if w.kernel.sets != sets+1 || w.untilRetry() > repairEvery {
			t.Errorf("%s: %d sets, next pass in %v; want it put off, not forgotten", name, w.kernel.sets-sets, w.untilRetry())
		}
		w.wantReason("a", true)
		w.clock = w.clock.Add(repairEvery)
		w.pass(0)
		w.pass(0)
		if w.kernel.sets != sets+2 {
			t.Errorf("%s: %d sets; want the owed one, once", name, w.kernel.sets-sets)
		}
	}
}

func TestProblemsOfTheStartAreShown(t *testing.T) {
	w := newWorld(t)
	w.opts.Problems = []error{errors.New("--bbr: the kernel has no bbr")}
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	w.wantReason("a", true)
	if got := w.Status().Problems; len(got) != 1 || got[0] != "--bbr: the kernel has no bbr" {
		t.Errorf("problems %q", got)
	}
}

func TestRepairsAreTold(t *testing.T) {
	w := newWorld(t)
	a := w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	w.told, w.log = nil, nil
	w.kernel.repairs = []datapath.Repair{
		{Pod: a.Pod, Device: 11, Cause: datapath.CauseHidden, By: `program "rival"`},
		{Pod: datapath.Pod{Namespace: "default", Name: "gone", UID: "uid-gone"}, Device: 12, Cause: datapath.CauseRemoved},
	}
	w.pass(0)
	want := []string{`a repaired: program "rival" was put before kubepace's program, which runs first again`}
	if diff := cmp.Diff(want, w.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if len(w.log) != 2 || !strings.Contains(w.log[0], "limit was disturbed and is in force again") {
		t.Errorf("log %q; want a line for each", w.log)
	}
	counts := map[datapath.Cause]uint64{datapath.CauseHidden: 1, datapath.CauseRemoved: 1}
	if diff := cmp.Diff(counts, w.Repairs()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// slowLook finds what the test says, when it does, where the test wants it slow.
type slowLook struct {
	*charge
	slow  func(devices []int) bool
	begun chan struct{}
	found chan map[int]rivals.Rival
}

func (l *slowLook) Look(devices, exits []int) (map[int]rivals.Rival, error) {
	if l.slow(devices) {
		l.begun <- struct{}{}
		return <-l.found, nil
	}
	return l.charge.Look(devices, exits)
}

// TestPodsDoNotWaitForOtherLimiters: on a node full of pods all devices are looked at meanwhile, those of new pods at once.
func TestPodsDoNotWaitForOtherLimiters(t *testing.T) {
	w, c := withRivals(t, rivals.StandDown)
	w.opts.StatusFile = "" // which is to be written soon as well
	for i := range manyVeths {
		w.pod(fmt.Sprintf("p%02d", i), "10M", fmt.Sprintf("10.0.0.%d", 100+i))
	}
	one := c.found[11]
	c.found = nil
	w.pass(Resync)
	w.wantReason("a", true)
	many := func(devices []int) bool { return len(devices) > manyVeths }
	slow := &slowLook{c, many, make(chan struct{}, 9), make(chan map[int]rivals.Rival)}
	w.opts.Rivals = slow
	w.clock = w.clock.Add(lookEvery)
	w.pass(QdiscsChanged)
	<-slow.begun
	c.found = map[int]rivals.Rival{13: one}
	w.pod("new", "10M", "10.0.0.13")
	w.clock = w.clock.Add(lookEvery)
	w.pass(PodsChanged | QdiscsChanged) // the next look at all is put off
	w.wantReason("new", false, "another limiter is in charge")
	w.wantReason("a", true)
	if w.unsynced = 0; w.untilRetry() <= time.Millisecond { // the exits are another matter
		t.Errorf("next pass in %v; want it when the look is over", w.untilRetry())
	}
	// Another device gets the number of one that is being looked at.
	moved := found(12)
	moved.Devices[0].Name = "another"
	w.network.found["10.0.0.12"] = moved
	w.pass(DevicesChanged)
	slow.found <- map[int]rivals.Rival{11: one, 12: one, 13: one}
	for began := time.Now(); w.verdict("a").Enforced && time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
		w.pass(w.takeAsked()) // the look at the exits ends as well
	}
	w.wantReason("a", false, "another limiter is in charge")
	w.wantReason("b", true)
	w.wantReason("new", false, "another limiter is in charge")
	if _, held := w.kernel.states["uid-a"]; held {
		t.Error("the kernel still holds our limit")
	}
	select {
	case <-slow.begun: // the one that was put off
	case <-time.After(10 * time.Second):
		t.Fatal("what changed during a look is not looked at again")
	}
	// A full comparison waits for the one that runs, and looks itself.
	go func() {
		time.Sleep(50 * time.Millisecond) // the pass is there before
		slow.found <- map[int]rivals.Rival{11: one}
		slow.found <- nil
	}()
	w.pass(Resync)
	w.wantReason("a", true)
	w.wantReason("new", true)
	if w.looking.goesOn() {
		t.Error("a look is left")
	}
}
