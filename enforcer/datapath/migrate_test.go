// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/bpf"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

func mustOpenSpec(t *testing.T, bpffs string, spec func() (*ebpf.CollectionSpec, error)) *Datapath {
	t.Helper()
	d, err := Open(Options{BPFFS: bpffs, Log: testr.New(t), spec: spec})
	if err != nil {
		t.Errorf("open: %+v", err)
		runtime.Goexit()
	}
	return d
}

// programs counts the programs that see a device's packets at ingress.
func programs(t *testing.T, ifindex int) int {
	t.Helper()
	list, err := filters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		t.Errorf("filters: %v", err)
	}
	n := len(list)
	if result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress}); err == nil {
		n += len(result.Programs)
	}
	return n
}

// TestUpgradeKeepsState goes to maps of another layout and back: limit, clock, counters and identity come along, each
// device has one program all the time, and nothing of the earlier layout is left.
func TestUpgradeKeepsState(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		a, b, c := mustVeth(t, "a"), mustVeth(t, "b"), mustVeth(t, "c")
		d := mustOpen(t, bpffs)
		web := Limit{Pod: Pod{"team", "web", "uid-web"}, Devices: []Device{a, b}, Rate: 10 * bandwidth.Megabit, Mode: ModePacing}
		db := Limit{Pod: Pod{"team", "db", "uid-db"}, Devices: []Device{c}, Rate: 7 * bandwidth.Kilobit, Mode: ModePolicing}
		for _, limit := range []Limit{web, db} {
			if err := d.Set(limit); err != nil {
				t.Errorf("set: %v", err)
				return
			}
		}
		slot := d.pods["uid-web"].slot
		clock := bpf.EgressPacePod{ClockNs: monotonicNs() + uint64(time.Hour), Packets: 3, Bytes: 4500, SparseNs: 17, Unstamped: 5, Dropped: 2, DroppedBytes: 99}
		if err := d.objects.KubepacePods.Put(slot, clock); err != nil {
			t.Errorf("put: %v", err)
		}
		before, err := Read(bpffs)
		if err != nil {
			t.Errorf("read: %v", err)
		}
		for i, spec := range []func() (*ebpf.CollectionSpec, error){renamed, bpf.LoadEgress, renamed, renamed} {
			d.Close()
			d = mustOpenSpec(t, bpffs, spec)
			checkUpgraded(t, d, before)
			for _, device := range []Device{a, b, c} {
				if n := programs(t, device.Index); n != 1 {
					t.Errorf("upgrade %d: %d programs on %s", i, n, device.Name)
				}
			}
			if got, err := os.ReadDir(bpffs); err != nil || len(got) != 1 || got[0].Name() != d.pins.layout {
				t.Errorf("upgrade %d: pins %v, %v, want %s alone", i, got, err, d.pins.layout)
			}
		}
		if _, err := Read(bpffs); err == nil || !strings.Contains(err.Error(), "another version") {
			t.Errorf("read of another layout: %v, want one that says so", err)
		}
		if err := d.Set(web); err != nil {
			t.Errorf("set after upgrades: %v", err)
		}
		d.Close()
		if err := Cleanup(bpffs); err != nil {
			t.Errorf("cleanup of another version's pins: %v", err)
		}
		for _, device := range []Device{a, b, c} {
			if n := programs(t, device.Index); n != 0 || hasIngressQdisc(device.Index) {
				t.Errorf("after cleanup: %d programs on %s, ingress qdisc %v", n, device.Name, hasIngressQdisc(device.Index))
			}
		}
	})
}

func checkUpgraded(t *testing.T, d *Datapath, want []State) {
	t.Helper()
	got, err := d.States()
	if err != nil {
		t.Errorf("states: %v", err)
		return
	}
	for i := range got {
		if i < len(want) {
			if early := want[i].Backlog - got[i].Backlog; early > time.Minute {
				t.Errorf("the clock of %s went back by %v", got[i].Pod, early)
			}
			got[i].Backlog = want[i].Backlog
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after an upgrade (-want +got):\n%s", diff)
	}
}

// byHand makes pinned state as another version's agent does: a pod with two devices, one or both of which have the
// program. It returns where it is pinned.
func byHand(t *testing.T, bpffs string, spec func() (*ebpf.CollectionSpec, error), padding int, pod Pod, clock bpf.EgressPacePod, devices []Device, attach func(*Datapath, Device) error) pins {
	t.Helper()
	features, err := Probe()
	if err != nil {
		t.Errorf("probe: %v", err)
		runtime.Goexit()
	}
	d := &Datapath{log: testr.New(t), pins: pins{root: bpffs}, features: features, loadSpec: spec}
	if err := d.load(); err != nil {
		t.Errorf("load: %v", err)
		runtime.Goexit()
	}
	defer d.Close()
	const slot = uint32(5)
	table, err := ebpf.NewMap(d.inner)
	if err != nil {
		t.Errorf("flow table: %v", err)
		runtime.Goexit()
	}
	defer table.Close()
	pad := make([]byte, padding)
	errs := []error{
		d.objects.KubepaceFlows.Put(slot, table),
		d.objects.KubepaceIdentities.Put(slot, identityOf(pod)),
		d.objects.KubepaceLimits.Put(slot, paceLimit(10*bandwidth.Megabit, ModePolicing)),
		d.objects.KubepacePods.Put(slot, append(encode(t, clock), pad...)),
	}
	for _, device := range devices {
		record := append(encode(t, bpf.EgressKubepaceDevice{Slot: slot}), pad...)
		errs = append(errs, d.objects.KubepaceDevices.Put(uint32(device.Index), record), attach(d, device))
	}
	if err := errors.Join(errs...); err != nil {
		t.Errorf("make the earlier version's state: %v", err)
	}
	return d.pins
}

func attachOwn(d *Datapath, device Device) error {
	_, err := attach(d.pins, d.objects.KubepaceEgress, device.Index, d.opts.clsact)
	return err
}

// TestUpgradeFromLargerValues: what the earlier version's values have more is left out.
func TestUpgradeFromLargerValues(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		a, b := mustVeth(t, "a"), mustVeth(t, "b")
		pod := Pod{"team", "web", "uid-web"}
		old := byHand(t, bpffs, grown, 8, pod, bpf.EgressPacePod{ClockNs: monotonicNs() + uint64(time.Hour), Bytes: 77}, []Device{a, b}, attachOwn)
		d := mustOpen(t, bpffs)
		defer d.Close()
		if d.pins == old {
			t.Errorf("both layouts are named %s", old.layout)
		}
		states, err := d.States()
		if err != nil || len(states) != 1 || states[0].Pod != pod || states[0].Rate != 10*bandwidth.Megabit || len(states[0].Devices) != 2 ||
			states[0].Counters.Bytes != 77 || states[0].Backlog < 50*time.Minute {
			t.Errorf("states %+v, %v", states, err)
		}
		if a, b := programs(t, a.Index), programs(t, b.Index); a != 1 || b != 1 {
			t.Errorf("%d and %d programs", a, b)
		}
	})
}

func TestCleanupOfLargerValues(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		a := mustVeth(t, "a")
		byHand(t, bpffs, grown, 8, Pod{"team", "web", "uid-web"}, bpf.EgressPacePod{}, []Device{a}, attachOwn)
		if err := Cleanup(bpffs); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		if _, err := os.Stat(bpffs); !errors.Is(err, os.ErrNotExist) || programs(t, a.Index) != 0 {
			t.Errorf("%d programs are left, pins: %v", programs(t, a.Index), err)
		}
	})
}

// TestUpgradeGoesOn: an agent that died in the middle of an upgrade left a pod in both layouts, with one of its
// devices each. The clock that runs is the newer layout's.
func TestUpgradeGoesOn(t *testing.T) {
	bpffs := tempBPFFS(t)
	inNamespace(t, func(t *testing.T) {
		a, b := mustVeth(t, "a"), mustVeth(t, "b")
		pod := Pod{"team", "web", "uid-web"}
		old := byHand(t, bpffs, renamed, 0, pod, bpf.EgressPacePod{ClockNs: 1, Bytes: 5}, []Device{a, b}, attachOwn)
		byHand(t, bpffs, bpf.LoadEgress, 0, pod, bpf.EgressPacePod{ClockNs: monotonicNs() + uint64(time.Hour), Bytes: 77}, []Device{a}, func(d *Datapath, device Device) error {
			if d.features.TCX {
				return moveLink(old.link(device.Index), d.pins.link(device.Index), d.objects.KubepaceEgress)
			}
			return attachOwn(d, device)
		})
		d := mustOpen(t, bpffs)
		defer d.Close()
		states, err := d.States()
		if err != nil || len(states) != 1 || len(states[0].Devices) != 2 || states[0].Counters.Bytes != 77 || states[0].Backlog < 50*time.Minute {
			t.Errorf("states %+v, %v", states, err)
		}
		if _, err := os.Stat(old.dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the earlier layout is still there: %v", err)
		}
	})
}

// What waits at this rate, a fifth of a second, is less than the 100 packets that a plain fq keeps of one flow.
const loadRate = 4 * bandwidth.Megabit

// loaded is a pod that sends twice its limit, and the agents of two versions that take turns.
type loaded struct {
	*netlab.Topology
	t        *testing.T
	bpffs    string
	limit    Limit
	horizon  time.Duration
	upgrades int
}

func newLoaded(t *testing.T) *loaded {
	t.Helper()
	l := &loaded{Topology: netlab.New(t, netlab.Options{}), t: t, bpffs: tempBPFFS(t), horizon: HorizonPolicing}
	l.limit = Limit{Pod: Pod{"team", "web", "uid"}, Devices: []Device{{Index: l.Pods[0].HostIndex}}, Rate: loadRate}
	features, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if features.Stamp && l.EnableFQ(false) == nil {
		l.limit.Mode, l.horizon = ModePacing, HorizonPacing
	}
	l.upgrade()
	return l
}

func (l *loaded) upgrade() {
	l.t.Helper()
	specs := []func() (*ebpf.CollectionSpec, error){bpf.LoadEgress, renamed}
	err := l.Node.Do(func() error {
		dp, err := Open(Options{BPFFS: l.bpffs, Log: testr.New(l.t), spec: specs[l.upgrades%2]})
		if err != nil {
			return err
		}
		l.upgrades++
		return errors.Join(dp.Set(l.limit), dp.Close())
	})
	if err != nil {
		l.t.Fatalf("upgrade %d: %v", l.upgrades, err)
	}
}

// run is what arrives of a flood while upgrades follow each other.
func (l *loaded) run(d time.Duration) traffic.Capture {
	l.t.Helper()
	meter, err := traffic.StartMeter(l.Host, l.HostDevice)
	if err != nil {
		l.t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := traffic.UDP(context.Background(), traffic.UDPOptions{
			From: l.Pods[0], To: l.Host, Addr: l.Remote, Rate: 2 * float64(loadRate), Size: 1400, Duration: d,
		})
		sent <- err
	}()
	for began := time.Now(); time.Since(began) < d; time.Sleep(d / 12) {
		l.upgrade()
	}
	err = <-sent
	capture, meterErr := meter.Stop()
	if err := errors.Join(err, meterErr); err != nil {
		l.t.Fatal(err)
	}
	return capture.From(l.Pods[0].Addr)
}

// TestUpgradeUnderLoad: a pod that sends twice its limit gets no more of it, and never falls silent, while the program
// and the layout of its maps change again and again.
func TestUpgradeUnderLoad(t *testing.T) {
	const d, stall = 4 * time.Second, 200 * time.Millisecond
	l := newLoaded(t)
	bound := 65536 + int64(float64(loadRate)/8*l.horizon.Seconds())
	quiet := time.Hour
	for range 3 { // a busy machine makes silences of its own
		c := l.run(d)
		burst, longest := c.Burst(float64(loadRate)), silence(c)
		quiet = min(quiet, longest)
		t.Logf("%s, %d upgrades: burst %d of %d bytes, longest silence %v", l.limit.Mode, l.upgrades, burst, bound, longest)
		if burst > bound {
			t.Errorf("a burst of %d bytes over the limit; limit × horizon + 64 KB is %d", burst, bound)
		}
		if used := c.Rate(c.First()+time.Second, c.First()+d) / float64(loadRate); used < 0.8 {
			t.Errorf("%.0f %% of the limit", 100*used)
		}
		if quiet <= stall {
			break
		}
	}
	if quiet > stall {
		t.Errorf("a silence of %v in each of three runs, at most %v is right", quiet, stall)
	}
	if left, err := os.ReadDir(l.bpffs); err != nil || len(left) != 1 {
		t.Errorf("pins %v, %v, want one layout", left, err)
	}
}

// silence is the longest time between two packets.
func silence(c traffic.Capture) (longest time.Duration) {
	for i := 1; i < len(c.Packets); i++ {
		longest = max(longest, c.Packets[i].At-c.Packets[i-1].At)
	}
	return longest
}

// encode is a value as the kernel stores it.
func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := binary.Append(nil, binary.NativeEndian, v)
	if err != nil {
		t.Errorf("encode %T: %v", v, err)
		runtime.Goexit()
	}
	return data
}
