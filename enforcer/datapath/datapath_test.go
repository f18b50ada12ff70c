// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/bpf"
)

// requireRoot skips, or fails where CI promised root.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root: it loads eBPF programs")
	}
	t.Skip("needs root: it loads eBPF programs")
}

// inNamespace runs the test's body in a network namespace of its own, on a thread that is thrown away.
func inNamespace(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	requireRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		body(t)
	}()
	<-done
}

// tempBPFFS is a bpffs of the test's own.
func tempBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(dir, "kubepace")
}

func mustOpen(t *testing.T, bpffs string) *Datapath {
	t.Helper()
	d, err := Open(Options{BPFFS: bpffs, Log: testr.New(t)})
	if err != nil {
		t.Errorf("open: %+v", err)
		runtime.Goexit()
	}
	return d
}

func mustVeth(t *testing.T, name string) Device {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
	if err != nil {
		t.Errorf("add veth: %v", err)
		runtime.Goexit()
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Errorf("find veth: %v", err)
		runtime.Goexit()
	}
	return Device{Index: link.Attrs().Index, Name: name}
}

func mustStates(t *testing.T, bpffs string) []State {
	t.Helper()
	states, err := Read(bpffs)
	if err != nil {
		t.Errorf("read: %v", err)
		runtime.Goexit()
	}
	for i := range states {
		states[i].Counters, states[i].Backlog = Counters{}, 0
	}
	return states
}

func TestLifecycle(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		if _, err := Read(bpffs); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read before the first agent: %v, want one that wraps fs.ErrNotExist", err)
		}
		d := mustOpen(t, bpffs)
		hook := HookClsact
		if d.Features().TCX {
			hook = HookTCX
		}
		a, b := mustVeth(t, "a"), mustVeth(t, "b")
		web := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{a}, Rate: 10 * bandwidth.Megabit, Mode: ModePacing}
		if err := d.Set(web); err != nil {
			t.Errorf("set: %v", err)
			return
		}
		want := []State{{Limit: web, Horizon: HorizonPacing}}
		want[0].Devices = []Device{{Index: a.Index, Name: "a", Hook: hook}}
		if diff := cmp.Diff(want, mustStates(t, bpffs)); diff != "" {
			t.Errorf("after set (-want +got):\n%s", diff)
		}

		// Live change, and a second device.
		web.Rate, web.Devices = 20*bandwidth.Megabit, []Device{a, b}
		if err := d.Set(web); err != nil {
			t.Errorf("set again: %v", err)
		}
		want[0].Rate = web.Rate
		want[0].Devices = []Device{{Index: a.Index, Name: "a", Hook: hook}, {Index: b.Index, Name: "b", Hook: hook}}
		if diff := cmp.Diff(want, mustStates(t, bpffs)); diff != "" {
			t.Errorf("after change (-want +got):\n%s", diff)
		}

		// The agent dies and comes back; meanwhile a device disappeared.
		d.Close()
		if diff := cmp.Diff(want, mustStates(t, bpffs)); diff != "" {
			t.Errorf("without agent (-want +got):\n%s", diff)
		}
		if err := netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "b"}}); err != nil {
			t.Errorf("delete veth: %v", err)
		}
		d = mustOpen(t, bpffs)
		defer d.Close()
		want[0].Devices = want[0].Devices[:1]
		if diff := cmp.Diff(want, mustStates(t, bpffs)); diff != "" {
			t.Errorf("adopted (-want +got):\n%s", diff)
		}
		if err := d.Remove("uid-web"); err != nil {
			t.Errorf("remove: %v", err)
		}
		if err := d.Remove("uid-web"); err != nil {
			t.Errorf("remove twice: %v", err)
		}
		if got := mustStates(t, bpffs); len(got) != 0 || hookOf(d.pins, a.Index) != HookNone {
			t.Errorf("after remove: %v, hook %q", got, hookOf(d.pins, a.Index))
		}
	})
}

// TestKnownIsWhatWasSet: without a look into the kernel, and always the same as with one.
func TestKnownIsWhatWasSet(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		same := func(when string) []State {
			t.Helper()
			known, err := d.Known()
			states, err2 := d.States()
			if err := errors.Join(err, err2); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			for i := range states {
				states[i].Counters, states[i].Backlog, states[i].Horizon = Counters{}, 0, 0
				for j := range states[i].Devices {
					states[i].Devices[j].Name = ""
				}
			}
			if diff := cmp.Diff(states, known, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s (-kernel +known):\n%s", when, diff)
			}
			return known
		}
		a, b, c := mustVeth(t, "a"), mustVeth(t, "b"), mustVeth(t, "c")
		web := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{b, a}, Rate: 10 * bandwidth.Megabit, Mode: ModePacing}
		db := Limit{Pod: Pod{"team", "db", "uid-db"}, Devices: []Device{c}, Rate: bandwidth.Megabit}
		set := func(l Limit) {
			t.Helper()
			if err := d.Set(l); err != nil {
				t.Errorf("set: %v", err)
			}
		}
		same("empty")
		set(web)
		set(db)
		if known := same("set"); len(known) != 2 || known[0].Pod != db.Pod {
			t.Errorf("%+v; want db before web", known)
		}
		web.Rate, web.Mode, web.Devices = 20*bandwidth.Megabit, ModePolicing, []Device{a}
		set(web)
		same("changed")
		db.Devices = []Device{a}
		set(db) // the number was given to another pod
		same("another pod's device")
		set(web)
		same("and back")
		db.Devices = []Device{b}
		set(db)
		same("apart")
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		d = mustOpen(t, bpffs)
		defer d.Close()
		same("adopted")
		if err := d.Remove("uid-db"); err != nil {
			t.Error(err)
		}
		if known := same("removed"); len(known) != 1 {
			t.Errorf("%+v; want web alone", known)
		}
		// Somebody writes into the map: States sees it, and a Set puts it right.
		if err := d.objects.KubepaceLimits.Put(d.pods["uid-web"].slot, paceLimit(bandwidth.Gigabit, ModePacing)); err != nil {
			t.Errorf("write another limit: %v", err)
		}
		if states, err := d.States(); err != nil || len(states) != 1 || states[0].Rate != bandwidth.Gigabit {
			t.Errorf("states %+v, %v; want what is in the map", states, err)
		}
		set(web)
		same("put right")
	})
}

// TestManyAtOnce: pods that come and go at the same time get slots, tables and devices of their own.
func TestManyAtOnce(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		node, err := netns.Get()
		if err != nil {
			t.Error(err)
			return
		}
		defer node.Close()
		const pods = 24
		limits := make([]Limit, pods)
		for i := range limits {
			name := fmt.Sprintf("p%02d", i)
			limits[i] = Limit{Pod: Pod{"team", name, "uid-" + name}, Devices: []Device{mustVeth(t, name)}, Rate: bandwidth.Rate(i+1) * bandwidth.Megabit}
		}
		// Threads of their own, in the namespace of this one.
		all := func(f func(i int) error) {
			t.Helper()
			errs := make([]error, pods)
			var wg sync.WaitGroup
			for i := range pods {
				wg.Go(func() {
					runtime.LockOSThread()
					if errs[i] = netns.Set(node); errs[i] == nil {
						errs[i] = f(i)
					}
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
		}
		// In slots that are not in use as well, for what was left behind; not in all 16,384: Linux 5.10 waits for a grace
		// period at each.
		tables := func() int {
			found := map[uint32]bool{}
			for slot := range uint32(2 * pods) {
				var id uint32
				if err := d.objects.KubepaceFlows.Lookup(slot, &id); err == nil {
					found[id] = true
				} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
					t.Errorf("flow table of slot %d: %v", slot, err)
				}
			}
			return len(found)
		}
		for round := range 3 {
			all(func(i int) error { return d.Set(limits[i]) })
			states := mustStates(t, bpffs)
			if len(states) != pods {
				t.Errorf("round %d: %d pods; want %d", round, len(states), pods)
				return
			}
			for i, s := range states {
				if s.Rate != limits[i].Rate || len(s.Devices) != 1 || s.Devices[0].Index != limits[i].Devices[0].Index || s.Devices[0].Hook == HookNone {
					t.Errorf("round %d: %+v; want %+v, attached", round, s, limits[i])
				}
			}
			if n := tables(); n != pods {
				t.Errorf("round %d: %d flow tables; want %d", round, n, pods)
			}
			// Half of them go while the others are changed.
			all(func(i int) error {
				if i%2 == 0 {
					return d.Remove(limits[i].Pod.UID)
				}
				limits[i].Rate += bandwidth.Megabit
				return d.Set(limits[i])
			})
			if got := mustStates(t, bpffs); len(got) != pods/2 || len(d.slots) != pods/2 {
				t.Errorf("round %d: %d pods in %d slots; want %d", round, len(got), len(d.slots), pods/2)
			}
			if n := tables(); n != pods/2 {
				t.Errorf("round %d: %d flow tables of those that stay; want %d", round, n, pods/2)
			}
		}
	})
}

func TestSetRepairs(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		a := mustVeth(t, "a")
		web := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{a}, Rate: bandwidth.Megabit}
		if err := d.Set(web); err != nil {
			t.Errorf("set: %v", err)
			return
		}
		if err := detach(d.pins, a.Index, true); err != nil {
			t.Errorf("detach: %v", err)
		}
		if hookOf(d.pins, a.Index) != HookNone {
			t.Error("still attached")
		}
		if err := d.Set(web); err != nil {
			t.Errorf("set again: %v", err)
		}
		if hookOf(d.pins, a.Index) == HookNone {
			t.Error("not repaired")
		}
		// Whoever may may write into the map, too.
		if err := d.objects.KubepaceLimits.Put(d.pods["uid-web"].slot, paceLimit(bandwidth.Gigabit, ModePacing)); err != nil {
			t.Errorf("write another limit: %v", err)
		}
		if err := d.Set(web); err != nil {
			t.Errorf("set once more: %v", err)
		}
		if got := mustStates(t, bpffs); len(got) != 1 || got[0].Rate != web.Rate {
			t.Errorf("%+v; want the limit %s again", got, web.Rate)
		}
		for what, write := range map[string]func() error{
			"gone": func() error { return d.objects.KubepaceDevices.Delete(uint32(a.Index)) },
			"another slot": func() error {
				return d.objects.KubepaceDevices.Put(uint32(a.Index), bpf.EgressKubepaceDevice{Slot: 77})
			},
		} {
			if err := write(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if err := d.Set(web); err != nil {
				t.Errorf("%s: set: %v", what, err)
			}
			if got := mustStates(t, bpffs); len(got) != 1 || len(got[0].Devices) != 1 {
				t.Errorf("%s: %+v; want the device again", what, got)
			}
		}
	})
}

// TestFailedSetKeepsNoSlot: it is tried again and again.
func TestFailedSetKeepsNoSlot(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		web := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{mustVeth(t, "a")}, Rate: bandwidth.Megabit}
		whole := d.objects.KubepaceIdentities
		broken, err := whole.Clone()
		if err != nil {
			t.Error(err)
			return
		}
		broken.Close()
		d.objects.KubepaceIdentities = broken
		if err := d.Set(web); err == nil || len(d.slots) != 0 {
			t.Errorf("set: %v with slots %v; want an error and none", err, d.slots)
		}
		d.objects.KubepaceIdentities = whole
		if err := d.Set(web); err != nil || len(d.slots) != 1 {
			t.Errorf("set: %v with slots %v; want one", err, d.slots)
		}
	})
}

func TestClsact(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		ours, theirs := mustVeth(t, "ours"), mustVeth(t, "theirs")
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: theirs.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}
		if err := netlink.QdiscAdd(ingress); err != nil {
			t.Errorf("add an ingress qdisc as the CNI bandwidth plugin does: %v", err)
		}
		for _, dev := range []Device{ours, theirs} {
			own, err := attachClsact(d.objects.KubepaceEgress, dev.Index)
			if err != nil || own != (dev == ours) {
				t.Errorf("attach to %s: own %v, %v", dev.Name, own, err)
			}
			// Replacing does not add a second filter.
			if _, err := attachClsact(d.objects.KubepaceEgress, dev.Index); err != nil {
				t.Errorf("attach to %s again: %v", dev.Name, err)
			}
			if list, err := filters(dev.Index, netlink.HANDLE_MIN_INGRESS); err != nil || len(list) != 1 || !hasFilter(dev.Index) {
				t.Errorf("filters of %s: %v, %v", dev.Name, list, err)
			}
			if err := detach(d.pins, dev.Index, own); err != nil {
				t.Errorf("detach from %s: %v", dev.Name, err)
			}
			if hasFilter(dev.Index) || hasIngressQdisc(dev.Index) != (dev == theirs) {
				t.Errorf("%s: filter %v, ingress qdisc %v", dev.Name, hasFilter(dev.Index), hasIngressQdisc(dev.Index))
			}
		}
	})
}

func TestCleanup(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		a := mustVeth(t, "a")
		if err := d.Set(Limit{Pod: Pod{"team", "web", "uid"}, Devices: []Device{a}, Rate: bandwidth.Megabit}); err != nil {
			t.Errorf("set: %v", err)
		}
		d.Close()
		if err := Cleanup(bpffs); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		if _, err := os.Stat(bpffs); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pins are left: %v", err)
		}
		if hasFilter(a.Index) || hasIngressQdisc(a.Index) {
			t.Error("a filter is left")
		}
		if err := Cleanup(bpffs); err != nil {
			t.Errorf("cleanup of nothing: %v", err)
		}
	})
}

func TestSetRefuses(t *testing.T) {
	pod, dev := Pod{"team", "web", "uid"}, []Device{{Index: 1}}
	for name, limit := range map[string]Limit{
		"no UID":       {Pod: Pod{"team", "web", ""}, Devices: dev, Rate: bandwidth.Megabit},
		"no rate":      {Pod: pod, Devices: dev},
		"rate too low": {Pod: pod, Devices: dev, Rate: 999},
		"no device":    {Pod: pod, Rate: bandwidth.Megabit},
		"long name":    {Pod: Pod{"team", string(make([]byte, 300)), "uid"}, Devices: dev, Rate: bandwidth.Megabit},
	} {
		if err := new(Datapath).Set(limit); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDeviceThatVanishes between its discovery and Set, as it does where pods live for seconds, leaves nothing behind.
func TestDeviceThatVanishes(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		d := mustOpen(t, bpffs)
		defer d.Close()
		a := mustVeth(t, "a")
		gone := Device{Index: a.Index + 1000}
		limit := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{gone}, Rate: bandwidth.Megabit}
		entries := func() int {
			devices, err := readDevices(d.objects.KubepaceDevices)
			if err != nil {
				t.Errorf("list devices: %v", err)
			}
			return len(devices)
		}
		if err := d.Set(limit); err == nil {
			t.Error("a device that does not exist was limited")
		}
		limit.Devices = []Device{a}
		if err := d.Set(limit); err != nil || entries() != 1 {
			t.Errorf("another device: %v, %d entries; want 1", err, entries())
		}
		limit.Devices = []Device{a, gone}
		if err := d.Set(limit); err == nil {
			t.Error("a device that does not exist was limited")
		}
		if err := d.Remove("uid-web"); err != nil || entries() != 0 {
			t.Errorf("remove: %v, %d entries are left", err, entries())
		}
	})
}

// TestHorizonOf: what the state says is what the program uses: room for eight full frames of 1,514 bytes.
func TestHorizonOf(t *testing.T) {
	for rate, want := range map[bandwidth.Rate]time.Duration{
		10 * bandwidth.Megabit:  200 * time.Millisecond,
		100 * bandwidth.Kilobit: 968960 * time.Microsecond,
		bandwidth.Kilobit:       9 * time.Second,
	} {
		if got := horizonOf(paceLimit(rate, ModePacing)); got != want {
			t.Errorf("%s: horizon %v, want %v", rate, got, want)
		}
	}
}
