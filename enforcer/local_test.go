// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"net/netip"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// TestPodOfTheNodeOnly: while the API server is away a pod is held to what it started with, unless the kernel holds it
// to something already; then the API server's word replaces that, and only then somebody is told.
func TestPodOfTheNodeOnly(t *testing.T) {
	w := newWorld(t)
	w.source.snapshot.Complete = false
	w.pod("new", "10M", "10.0.0.11").Origin = pods.OriginCNI
	w.pod("changed", "10M", "10.0.0.12").Origin = pods.OriginCNI
	held := datapath.Limit{Pod: datapath.Pod{Namespace: "default", Name: "changed", UID: "uid-changed"}, Rate: 20 * bandwidth.Megabit, Mode: datapath.ModePacing}
	if err := w.kernel.Set(held); err != nil {
		t.Fatal(err)
	}
	w.pass(Resync)
	w.wantLimit("new", "10M", datapath.ModePacing)
	w.wantLimit("changed", "20M", datapath.ModePacing)
	w.wantReason("changed", true)
	w.clock = w.clock.Add(time.Hour)
	w.pass(0)
	if wait := w.untilRetry(); len(w.told) != 0 || wait < time.Second {
		t.Errorf("told %q, next pass in %v; want nobody told, and no hurry", w.told, wait)
	}
	// It is gone from the node while the API server is still away.
	w.source.snapshot.Pods[0].Rate = 0
	gone := w.source.snapshot.Pods[0]
	w.source.snapshot.Pods = w.source.snapshot.Pods[1:]
	w.pass(PodsChanged)
	if len(w.kernel.states) != 2 {
		t.Errorf("kernel holds %v; want nothing removed while the source is not complete", w.kernel.states)
	}
	// The API server is back: it raised the one and does not know the other.
	w.source.snapshot.Complete = true
	w.source.snapshot.Pods[0].Origin, w.source.snapshot.Pods[0].Rate = pods.OriginAPI, 30*bandwidth.Megabit
	w.pass(PodsChanged)
	w.wantLimit("changed", "30M", datapath.ModePacing)
	if _, there := w.kernel.states[gone.UID]; there || len(w.told) != 1 {
		t.Errorf("kernel holds %v, told %q; want the gone pod's limit gone, and the other told", w.kernel.states, w.told)
	}
}

// TestPodThatHidesItsAddress: what leads out of a pod does not change with the pod's addresses, nor with a neighbour
// that takes one of them.
func TestPodThatHidesItsAddress(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(Resync)
	for name, err := range map[string]error{
		"hidden": &device.NotFoundError{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.11")}},
		"taken":  &device.AmbiguousError{IP: netip.MustParseAddr("10.0.0.11")},
	} {
		w.network.err = err
		w.pass(Resync)
		if v := w.verdict("a"); !v.Enforced || len(v.Devices) != 1 {
			t.Errorf("%s: %+v; want it held as before", name, v)
		}
	}
	w.source.snapshot.Pods[0].Rate = 5 * bandwidth.Megabit
	w.pass(PodsChanged)
	w.wantLimit("a", "5M", datapath.ModePacing)
	w.network.found = map[string]device.Found{} // now the device is gone
	w.pass(DevicesChanged)
	w.wantReason("a", false, "no network namespace")
}

// TestPodThatEndsIsNotLookedForEverywhere: a pod whose network the runtime told of and took down is looked for by what
// the runtime tells next; by its address among all namespaces only when everything is compared.
func TestPodThatEndsIsNotLookedForEverywhere(t *testing.T) {
	w := newWorld(t)
	pod := w.pod("a", "10M", "10.0.0.11")
	pod.Sandboxes = []cni.Sandbox{{Pod: pod.Pod, ID: "1", Netns: "a"}}
	w.pass(Resync)
	w.wantLimit("a", "10M", datapath.ModePacing)
	found := w.network.found
	w.source.snapshot.Pods[0].Sandboxes = nil
	finds := w.network.finds
	w.pass(PodsChanged) // before the device goes or after it, as the runtime pleases
	w.wantReason("a", true)
	if w.network.finds != finds {
		t.Error("looked for a pod whose devices are there, by nothing new")
	}
	w.network.found = map[string]device.Found{}
	w.pass(PodsChanged | DevicesChanged)
	w.wantReason("a", false, "was taken down")
	if q := w.network.asked[pod.UID]; !q.Left {
		t.Errorf("looked for by %+v; want no search by address", q)
	}
	w.network.found = found
	w.clock = w.clock.Add(maxRetry)
	w.pass(Resync)
	w.wantReason("a", true)
	// Found by its address, it is looked for by that again.
	w.network.found = map[string]device.Found{}
	w.pass(DevicesChanged)
	if q := w.network.asked[pod.UID]; q.Left {
		t.Errorf("looked for by %+v; want its address among it", q)
	}
	// A pod that nobody told of has nothing but its address.
	w.pod("b", "10M", "10.0.0.12")
	w.network.found = map[string]device.Found{}
	w.pass(PodsChanged | DevicesChanged)
	if q, ok := w.network.asked["uid-b"]; !ok || q.Left {
		t.Errorf("looked for by %+v; want it by its address", q)
	}
}

// TestPodsThatStartGoFirst: the devices where packets leave are looked at in the pass after, or soon enough.
func TestPodsThatStartGoFirst(t *testing.T) {
	w := newWorld(t)
	w.opts.StatusFile = "" // which is to be written soon as well
	w.pass(Resync)
	want := func(syncs int, owed bool, why string) {
		t.Helper()
		if soon := w.untilRetry() <= syncAtLeast; w.exits.syncs != syncs || soon != owed {
			t.Errorf("%s: %d looks, next pass in %v; want %d, and one owed %v", why, w.exits.syncs, w.untilRetry(), syncs, owed)
		}
	}
	want(1, false, "at start")
	w.clock = w.clock.Add(syncAtLeast / 2)
	w.pass(RoutesChanged)
	want(1, true, "news soon after a look")
	w.clock = w.clock.Add(syncAtLeast)
	w.pass(0)
	want(2, false, "what was put off")
	w.clock = w.clock.Add(syncAtLeast)
	w.pass(DevicesChanged)
	want(3, false, "news after a while")
	w.clock = w.clock.Add(syncAtLeast)
	w.pod("a", "10M", "10.0.0.11")
	w.pass(PodsChanged | RoutesChanged)
	w.wantLimit("a", "10M", datapath.ModePacing)
	want(3, true, "a pod that starts")
	w.exits.result.Exits = nil
	w.pass(0)
	w.wantLimit("a", "10M", datapath.ModePolicing)
	want(4, false, "after it")
	if len(w.exits.veths) != 1 {
		t.Errorf("looked with veths %v; want the pod's", w.exits.veths)
	}
	for i := range 5 { // as many pods as there may be, not for ever
		w.clock = w.clock.Add(syncAtLeast / 2)
		w.pod("b"+string(rune('0'+i)), "10M", "10.0.0.2"+string(rune('0'+i)))
		w.pass(PodsChanged | RoutesChanged)
	}
	want(5, true, "pods that start all the time")
	w.pass(Resync)
	want(6, false, "everything is compared")
	w.clock = w.clock.Add(syncAtLeast)
	w.pod("late", "10M", "10.0.0.41")
	w.pass(0) // without news: by the clock
	want(6, true, "a pod that was looked for again")
	w.pass(0)
	want(7, false, "after it")
	w.clock = w.clock.Add(syncAtLeast)
	w.pod("short", "10M", "10.0.0.42")
	w.pass(PodsChanged)
	want(7, true, "a pod that starts and ends")
	w.source.snapshot.Pods = w.source.snapshot.Pods[:len(w.source.snapshot.Pods)-1]
	w.pass(PodsChanged)
	want(7, false, "all is as it was")
}

// TestNothingToLookByIsNoHurry: a pod without address and result waits for news, not for the clock.
func TestNothingToLookByIsNoHurry(t *testing.T) {
	w := newWorld(t)
	w.pod("a", "10M", "")
	w.pass(Resync)
	w.clock = w.clock.Add(grace)
	w.pass(0)
	if wait := w.untilRetry(); wait < time.Second {
		t.Errorf("next pass in %v; want no hurry", wait)
	}
}
