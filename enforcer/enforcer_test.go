// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPassSetsLimits(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pod("free", "", "10.0.0.12")
	w.pass(Resync)
	w.wantLimit("a", "10M", datapath.ModePacing)
	w.wantReason("a", true)
	if len(w.kernel.states) != 1 {
		t.Errorf("kernel holds %v; want one limit", w.kernel.states)
	}
	w.pass(PodsChanged)
	w.pass(DevicesChanged)
	if w.kernel.sets != 1 || w.network.finds != 1 {
		t.Errorf("%d sets, %d searches without a change; want 1, 1", w.kernel.sets, w.network.finds)
	}
	w.source.snapshot.Pods[0].Rate = bandwidth.MustParse("20M")
	w.pass(PodsChanged)
	w.wantLimit("a", "20M", datapath.ModePacing)
}

func TestPassRemoves(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"pod gone":           func(w *world) { w.source.snapshot.Pods = nil },
		"annotation removed": func(w *world) { w.source.snapshot.Pods[0].Rate = 0 },
		"pod finished":       func(w *world) { w.source.snapshot.Pods[0].Phase = corev1.PodSucceeded },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.pod("a", "10M", "10.0.0.11")
			w.pass(Resync)
			w.wantLimit("a", "10M", datapath.ModePacing)
			change(w)
			w.pass(PodsChanged)
			if len(w.kernel.states) != 0 || len(w.Status().Pods) != 0 {
				t.Errorf("kernel holds %v, status %v; want nothing", w.kernel.states, w.Status().Pods)
			}
		})
	}
}

func TestNothingIsRemovedWhileTheSourceIsIncomplete(t *testing.T) {
	w := newWorld(t)
	w.kernel.states["uid-old"] = datapath.State{Limit: datapath.Limit{Pod: datapath.Pod{Name: "old", UID: "uid-old"}, Rate: bandwidth.Megabit}}
	w.source.snapshot.Complete = false
	w.pod("new", "10M", "10.0.0.11")
	w.pass(Resync)
	if len(w.kernel.states) != 2 || w.Ready() {
		t.Errorf("kernel holds %v, ready %v; want the adopted and the new limit, not ready", w.kernel.states, w.Ready())
	}
	w.source.snapshot.Complete = true
	w.pass(PodsChanged)
	if _, ok := w.kernel.states["uid-old"]; ok || !w.Ready() {
		t.Errorf("kernel holds %v, ready %v; want the old limit gone, ready", w.kernel.states, w.Ready())
	}
}

// TestSetsOnceWhatAnEarlierAgentSet: it may have had other settings, of which a state says nothing; later passes find
// what is wrong by the states alone.
func TestSetsOnceWhatAnEarlierAgentSet(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	again := newWorld(t)
	again.kernel.states = w.kernel.states
	again.pod("a", "10M", "10.0.0.11")
	again.pass(Resync)
	again.pass(Resync)
	if again.kernel.sets != 1 {
		t.Errorf("%d sets in two passes over what was there; want 1", again.kernel.sets)
	}
	for uid, state := range again.kernel.states {
		state.Rate = bandwidth.Gigabit
		again.kernel.states[uid] = state
	}
	again.pass(Resync)
	again.wantLimit("a", "10M", datapath.ModePacing)
}

// TestLooksInsideNowAndThen: of a pod that stands as it did it is asked in one of lookInside resyncs whether it has the
// interfaces that it had; only where it has not it is looked into.
func TestLooksInsideNowAndThen(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	w.network.finds, w.network.wholes = 0, 0
	for range 2 * lookInside {
		w.pass(Resync)
		w.pass(DevicesChanged)
	}
	if w.network.wholes != 2 || w.network.finds != 0 {
		t.Errorf("asked %d times and looked %d times in %d resyncs; want 2 and none", w.network.wholes, w.network.finds, 2*lookInside)
	}
	w.network.torn = true
	f := w.network.found["10.0.0.11"]
	f.Unheld = []string{"net1 (macvlan)"}
	w.network.found["10.0.0.11"] = f
	for range lookInside {
		w.pass(Resync)
	}
	w.wantReason("a", false, "net1 (macvlan)")
	if w.network.finds != 1 {
		t.Errorf("looked %d times; want once", w.network.finds)
	}
}

func TestPokesMakeOnePass(t *testing.T) {
	w := newWorld(t)
	w.Poke(DevicesChanged)
	w.Poke(RoutesChanged)
	if asked := w.takeAsked(); asked != DevicesChanged|RoutesChanged || len(w.wake) != 0 {
		t.Errorf("asked for %b, %d more passes; want both reasons and none", asked, len(w.wake))
	}
}

func TestRemoveGoesBeforeSet(t *testing.T) {
	w := newWorld(t)
	w.pod("old", "10M", "10.0.0.11")
	w.pass(Resync)
	w.source.snapshot.Pods = nil
	w.pod("new", "10M", "10.0.0.11") // has got the old one's device
	w.kernel.calls = nil
	w.pass(PodsChanged)
	if diff := cmp.Diff([]string{"remove uid-old", "set new"}, w.kernel.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestBadAnnotationKeepsLastGood(t *testing.T) {
	w := newWorld(t)
	a := w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	_, err := bandwidth.Parse("10 megabits")
	a.Rate, a.Err = 0, err
	b := w.pod("b", "", "10.0.0.12")
	b.Err = err
	w.pass(PodsChanged)
	w.wantLimit("a", "10M", datapath.ModePacing)
	w.wantReason("a", true, `"10 megabits" is not`, "the last good limit 10M stays")
	w.wantReason("b", false, `"10 megabits" is not`)
	w.wantCodes(map[string]Code{"a": CodeLastGoodLimit, "b": CodeInvalidLimit})
	if len(w.kernel.states) != 1 {
		t.Errorf("kernel holds %v; want one limit", w.kernel.states)
	}

	// The last good limit is the kernel's: a new agent knows it too, and holds it in the new mode.
	again := newWorld(t)
	again.kernel, again.source.snapshot, again.network = w.kernel, w.source.snapshot, w.network
	again.opts.Datapath = w.kernel
	again.exits.result.Exits = nil
	again.pass(Resync)
	again.wantLimit("a", "10M", datapath.ModePolicing)
}

func TestReasons(t *testing.T) {
	w := newWorld(t)
	w.pod("host", "10M", "").HostNetwork = true
	w.pod("early", "10M", "")
	w.pod("multus", "10M", "10.0.0.13")
	w.network.found["10.0.0.13"] = device.Found{Devices: found(13).Devices, Unheld: []string{"net1 (macvlan)"}}
	w.pass(Resync)
	w.wantCodes(map[string]Code{"host": CodeHostNetwork, "early": CodeDeviceNotFound, "multus": CodeNotAllHeld})
	w.wantReason("host", false, "shares the node's network namespace")
	w.wantReason("early", false, "no address yet")
	w.wantReason("multus", false, "net1 (macvlan)")
	w.wantLimit("multus", "10M", datapath.ModePacing)

	// At once for what will not pass, after a while for what may.
	wantTold := func(want int) {
		t.Helper()
		if len(w.told) != want {
			t.Errorf("observer was told %q; want %d", w.told, want)
		}
	}
	wantTold(2)
	lines := len(w.log)
	w.clock = w.clock.Add(grace)
	w.pass(0)
	wantTold(3)
	w.pass(Resync)
	wantTold(3)
	if len(w.log) != lines {
		t.Errorf("logged again: %q", w.log[lines:])
	}
	w.pod("other", "10M", "10.0.0.14")
	w.network.found["10.0.0.15"] = found(15)
	w.source.snapshot.Pods[1].IPs = []netip.Addr{netip.MustParseAddr("10.0.0.15")}
	w.pass(PodsChanged)
	w.wantReason("early", true)
	wantTold(5)
}

func TestMissingDeviceIsRetriedWithBackoff(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "").IPs = []netip.Addr{netip.MustParseAddr("10.0.0.11")}
	w.pass(Resync)
	var waits []time.Duration
	for range 12 {
		finds := w.network.finds
		p := w.pods["uid-a"]
		w.pass(PodsChanged)
		if w.network.finds != finds {
			t.Fatal("searched before its time")
		}
		waits = append(waits, p.retry.Sub(w.clock))
		w.clock = p.retry
		w.pass(0)
		if w.network.finds != finds+1 {
			t.Fatal("not searched in time")
		}
	}
	if waits[0] != minRetry || waits[1] != 2*minRetry || waits[11] != maxRetry {
		t.Errorf("waits %v; want %v doubling to %v", waits, minRetry, maxRetry)
	}
	w.network.found["10.0.0.11"] = found(11)
	w.pass(DevicesChanged)
	w.wantLimit("a", "10M", datapath.ModePacing)
	w.pass(0) // the devices where packets leave are looked at after it
	if wait := w.untilRetry(); wait < time.Second {
		t.Errorf("loop wakes in %v with nothing to do", wait)
	}
}

func TestChangedDeviceIsFollowed(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	w.network.found["10.0.0.11"] = found(99)
	w.pass(DevicesChanged)
	if got := w.kernel.states["uid-a"].Devices; len(got) != 1 || got[0].Index != 99 {
		t.Errorf("devices %v; want 99", got)
	}
}

func TestFailuresAreRetried(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.kernel.setErr = errors.New("attach tcx to veth: no memory")
	w.pass(Resync)
	w.wantReason("a", false, "no memory")
	if wait := w.untilRetry(); wait > minRetry {
		t.Errorf("next try in %v; want %v", wait, minRetry)
	}
	w.kernel.setErr = nil
	w.pass(0)
	w.wantReason("a", true)

	w.pod("early", "10M", "")
	w.pass(Resync)
	w.kernel.statesErr = errors.New("list pods: no permission")
	w.source.snapshot.Pods = w.source.snapshot.Pods[1:]
	w.clock = w.clock.Add(time.Minute)
	w.pass(0)
	w.clock = w.clock.Add(time.Minute)
	if len(w.kernel.states) != 1 || len(w.Status().Problems) != 1 || w.untilRetry() < failedRetry {
		t.Errorf("kernel %v, problems %v, next in %v; want nothing touched, the problem told, no hurry",
			w.kernel.states, w.Status().Problems, w.untilRetry())
	}
}

func TestVethsOfUnlimitedPods(t *testing.T) {
	w := newWorld(t)
	w.opts.Veths = true
	w.pod("a", "10M", "10.0.0.11")
	w.pod("free", "", "10.0.0.12")
	w.pod("host", "", "10.0.0.13").HostNetwork = true
	w.pod("done", "", "10.0.0.14").Phase = corev1.PodFailed
	w.pass(Resync)
	w.clock = w.clock.Add(syncAtLeast)
	w.pass(w.takeAsked())
	if diff := cmp.Diff([]int{11, 12}, w.exits.veths); diff != "" {
		t.Errorf("devices to pods (-want +got):\n%s", diff)
	}
	w.exits.result.Fq = &qdisc.MissingError{Option: "fq"}
	none := newWorld(t)
	none.opts.Veths, none.exits.result, none.source, none.network = true, w.exits.result, w.source, w.network
	none.opts.Source = w.source
	none.pass(Resync)
	none.pass(Resync)
	if diff := cmp.Diff([]int{11}, none.exits.veths); diff != "" {
		t.Errorf("devices to pods without fq (-want +got):\n%s", diff)
	}
}

func TestStatusFile(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.source.snapshot.Problems = []error{errors.New("read manifest x.yaml: kind: wrong")}
	w.pass(Resync)
	got, err := ReadStatus(filepath.Dir(w.opts.StatusFile))
	if err != nil {
		t.Fatal(err)
	}
	want := w.Status()
	want.Pods = slices.Clone(want.Pods)
	want.Pods[0].Mode = 0 // not in the file
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status file (-want +got):\n%s", diff)
	}
	if got.Mode != "pacing" || len(got.Problems) != 1 || len(got.Exits) != 1 {
		t.Errorf("status %+v; want mode, problem and exit device", got)
	}
	if err := os.Remove(w.opts.StatusFile); err != nil {
		t.Fatal(err)
	}
	w.clock = w.clock.Add(time.Hour)
	w.pass(Resync)
	if _, err := ReadStatus(filepath.Dir(w.opts.StatusFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("status file written again without a change: %v", err)
	}
}

func TestRunEnds(t *testing.T) {
	w := newWorld(t)
	w.now, w.beat = time.Now, 10*time.Millisecond
	compared := 0
	w.opts.Compared = func() { compared++ }
	w.pod("a", "10M", "10.0.0.11")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for !w.Ready() {
		time.Sleep(time.Millisecond)
	}
	if !w.Alive() {
		t.Error("not alive right after a pass")
	}
	began := time.Now()
	for turned := began; turned.Before(began.Add(5 * w.beat)); time.Sleep(time.Millisecond) { // there is nothing to pass for
		w.mu.Lock()
		turned = w.passed
		w.mu.Unlock()
		if time.Since(began) > 10*time.Second {
			t.Fatal("a loop with nothing to do does not say that it turns")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.wantLimit("a", "10M", datapath.ModePacing) // stays in force
	if compared != 1 {
		t.Errorf("compared %d times; want once, at the start", compared)
	}
}

func TestNewValidates(t *testing.T) {
	_, err := New(Options{Resync: -1})
	for _, part := range []string{"Source", "Datapath", "Qdiscs", "Scan", "Resync"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v lacks %q", err, part)
		}
	}
}

func TestDecideMode(t *testing.T) {
	stamp := datapath.Features{Kernel: "6.1.0", Stamp: true}
	fq := qdisc.Device{Name: "eth0", Qdisc: "fq", Paced: true}
	htb := qdisc.Device{Name: "eth1", Qdisc: "htb", Reason: "qdisc htb 1: was set by an administrator and stays"}
	for name, test := range map[string]struct {
		features datapath.Features
		devices  qdisc.Result
		err      error
		mode     datapath.Mode
		why      string
	}{
		"pacing":     {stamp, qdisc.Result{Exits: []qdisc.Device{fq}}, nil, datapath.ModePacing, "EDT with fq"},
		"old kernel": {datapath.Features{Kernel: "5.10.0"}, qdisc.Result{Exits: []qdisc.Device{fq}}, nil, datapath.ModePolicing, "kernel 5.10.0 cannot keep departure times (needs Linux 5.18)"},
		"no fq":      {stamp, qdisc.Result{Fq: &qdisc.MissingError{Option: "CONFIG_NET_SCH_FQ (sch_fq)"}}, nil, datapath.ModePolicing, "kernel 6.1.0 has no fq: needs CONFIG_NET_SCH_FQ (sch_fq)"},
		"one of two": {stamp, qdisc.Result{Exits: []qdisc.Device{fq, htb}}, nil, datapath.ModePolicing, "no fq on eth1: qdisc htb 1: was set by an administrator and stays"},
		"no exit":    {stamp, qdisc.Result{}, nil, datapath.ModePolicing, "no device by which packets leave was found; --exit-devices names them"},
		"unknown":    {stamp, qdisc.Result{Exits: []qdisc.Device{fq}}, errors.New("list routes: no"), datapath.ModePolicing, "list routes: no"},
	} {
		t.Run(name, func(t *testing.T) {
			mode, why := DecideMode(test.features, test.devices, test.err)
			if mode != test.mode || why != test.why {
				t.Errorf("DecideMode = %v, %q; want %v, %q", mode, why, test.mode, test.why)
			}
		})
	}
}
