// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// lab is a topology with the datapath on its node.
type lab struct {
	*netlab.Topology
	t     *testing.T
	bpffs string
	dp    *datapath.Datapath
	mode  datapath.Mode
	empty time.Time // when the last packet leaves that a removed limit let wait

	stalled time.Duration // the longest time that the machine stood still while the latest meter ran
}

// maxHorizon is PACE_MAX_HORIZON_NS.
const maxHorizon = 9 * time.Second

// newLab paces where this kernel can, else polices. KUBEPACE_EXPECT_MODE says what the machine should be able to do,
// so that a broken probe does not pass as policing.
func newLab(t *testing.T, o netlab.Options) *lab {
	t.Helper()
	l := &lab{Topology: netlab.New(t, o), t: t, bpffs: mountBPFFS(t)}
	l.open()
	fq := l.setFQ()
	if fq == nil && l.dp.Features().Stamp {
		l.mode = datapath.ModePacing
	}
	if want := os.Getenv("KUBEPACE_EXPECT_MODE"); want != "" && want != l.mode.String() {
		t.Fatalf("mode %s, but KUBEPACE_EXPECT_MODE=%s (fq: %v, features: %+v)", l.mode, want, fq, l.dp.Features())
	}
	return l
}

// setFQ puts fq where packets leave, with the agent's own parameters. It returns why this kernel has none.
func (l *lab) setFQ() error {
	l.t.Helper()
	var result qdisc.Result
	err := l.Node.Do(func() error {
		m, err := qdisc.New(qdisc.Options{
			RunDir: l.t.TempDir(), Exits: []string{netlab.Uplink}, Veths: true, Log: testr.New(l.t),
		})
		if err != nil {
			return err
		}
		l.t.Cleanup(m.Close)
		var veths []int
		for _, pod := range l.Pods {
			veths = append(veths, pod.HostIndex)
		}
		result, err = m.Sync(veths)
		return err
	})
	if err != nil {
		l.t.Fatalf("set fq: %v", err)
	}
	for _, d := range append(result.Exits, result.Veths...) {
		if result.Fq == nil && !d.Paced {
			l.t.Fatalf("%s is not paced: %+v", d.Name, d)
		}
	}
	return result.Fq
}

// beside lets a test run at the same time as others that send as little, where only the short version is made:
// each has namespaces of its own, and most of its time passes in waiting. Windows that are judged to 2 % want the
// machine for themselves.
func beside(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Parallel()
	}
}

// leftOut says that a test tests nothing here, and why; tests/vm/suite.sh shows it in its table.
func leftOut(t *testing.T, why string) {
	t.Helper()
	t.Logf("left out: %s", why)
}

// quickly: several kernels are gone through, as `make test` does, and only the telling cases are wanted.
var quickly = os.Getenv("KUBEPACE_QUICK") == "true"

// quick leaves a test out then; `make test-vm` has it.
func quick(t *testing.T) bool {
	t.Helper()
	if !quickly {
		return false
	}
	leftOut(t, "quick: `make test-vm` has it")
	return true
}

// open starts the datapath on the node, or starts it again.
func (l *lab) open() {
	l.t.Helper()
	err := l.Node.Do(func() (err error) {
		l.dp, err = datapath.Open(datapath.Options{BPFFS: l.bpffs, Log: testr.New(l.t)})
		return err
	})
	if err != nil {
		l.t.Fatalf("open datapath: %+v", err)
	}
	dp := l.dp
	l.t.Cleanup(func() { _ = dp.Close() })
}

func mountBPFFS(t *testing.T) string {
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

// limit sets a pod's limit; 0 removes it. What the removed limit let wait keeps its departure times: it is not the
// next limit's, and so leaves before that one is set.
func (l *lab) limit(pod int, rate bandwidth.Rate) {
	l.t.Helper()
	if rate != 0 {
		time.Sleep(time.Until(l.empty))
	} else if l.mode == datapath.ModePacing {
		// The last packet may cost more than a horizon, but leaves when the rest has.
		if empty := time.Now().Add(min(l.state(pod).Backlog, maxHorizon)); empty.After(l.empty) {
			l.empty = empty
		}
	}
	uid := fmt.Sprintf("uid-%d", pod)
	err := l.Node.Do(func() error {
		if rate == 0 {
			return l.dp.Remove(uid)
		}
		return l.dp.Set(datapath.Limit{
			Pod:     datapath.Pod{Namespace: "test", Name: l.Pods[pod].Name, UID: uid},
			Devices: []datapath.Device{{Index: l.Pods[pod].HostIndex}},
			Rate:    rate, Mode: l.mode,
		})
	})
	if err != nil {
		l.t.Fatalf("limit pod %d to %s: %v", pod, rate, err)
	}
}

// state is what the kernel holds for a pod.
func (l *lab) state(pod int) datapath.State {
	l.t.Helper()
	var states []datapath.State
	err := l.Node.Do(func() (err error) {
		states, err = datapath.Read(l.bpffs)
		return err
	})
	if err != nil {
		l.t.Fatalf("read state: %v", err)
	}
	for _, s := range states {
		if s.Pod.UID == fmt.Sprintf("uid-%d", pod) {
			return s
		}
	}
	l.t.Fatalf("pod %d has no state", pod)
	return datapath.State{}
}

// allowance is what may have left beyond limit × t, in bytes: invariant 4 of ARCHITECTURE.md, for n competing flows.
func (l *lab) allowance(rate bandwidth.Rate, flows int) int64 {
	const gso, frame = 65536, 1514
	mtu := time.Duration(frame * 8e9 / float64(rate))
	if l.mode == datapath.ModePolicing {
		horizon := max(datapath.HorizonPolicing, 4*mtu*time.Duration(flows), 2*mtu*gso/frame)
		return bytesIn(rate, horizon)
	}
	horizon := min(max(datapath.HorizonPacing, 8*mtu*time.Duration(flows)), maxHorizon)
	return gso + bytesIn(rate, horizon/8+max(datapath.HorizonPacing/16, min(2*mtu, time.Second)))
}

func bytesIn(rate bandwidth.Rate, t time.Duration) int64 {
	return int64(float64(rate) / 8 * t.Seconds())
}

// checkBound holds every prefix of a capture against limit × t + allowance, from the first packet on.
func checkBound(t *testing.T, c traffic.Capture, rate bandwidth.Rate, allowance int64) {
	t.Helper()
	var sum int64
	for _, p := range c.Packets {
		sum += int64(p.Wire)
		since := p.At - c.First()
		if bound := bytesIn(rate, since) + allowance; sum > bound {
			t.Errorf("%d wire bytes within %v; limit x t + allowance is %d (allowance %d)", sum, since, bound, allowance)
			return
		}
	}
}

// meter records what the host receives from one pod while fn runs.
func (l *lab) meter(fn func()) traffic.Capture {
	l.t.Helper()
	m, err := traffic.StartMeter(l.Host, l.HostDevice)
	if err != nil {
		l.t.Fatalf("start meter: %v", err)
	}
	stalls := watchStalls(l.t)
	fn()
	l.stalled = stalls()
	c, err := m.Stop()
	if err != nil {
		l.t.Fatalf("meter: %v", err)
	}
	return c
}

// used is the share of a limit that the wire carried: while pacing, in the best second, because a busy machine takes
// from the others; while policing, where TCP goes up and down, over all.
func used(c traffic.Capture, mode datapath.Mode, rate bandwidth.Rate, from, to time.Duration) float64 {
	if windows := c.Windows(from, to, time.Second); mode == datapath.ModePacing && len(windows) > 0 {
		return slices.Max(windows) / float64(rate)
	}
	return c.Rate(from, to) / float64(rate)
}

// void is the share of an attempt during which the machine stood still: it says nothing.
const void = -1.0

// bestOf repeats an attempt until it reports a share of the limit of at least want. One during which the machine stood
// still does not count: it waits for a machine that is there, and gives up after twenty.
func bestOf(t *testing.T, attempts int, want float64, attempt func() float64) {
	t.Helper()
	best, tries := math.Inf(-1), 0
	for ; attempts > 0 && best < want && tries < 20; tries++ {
		share := attempt()
		best = max(best, share)
		if share != void {
			attempts--
		}
	}
	if best == void {
		t.Errorf("in none of %d attempts was the machine there all the time", tries)
		return
	}
	if best < want {
		t.Errorf("used %.1f %% of the limit at best, want at least %.1f %%", 100*best, 100*want)
	}
}

// onOneCPU keeps the whole process on one processor: a sender that moves between processors, with packets in the
// backlog of each, reorders them before the datapath ever sees them.
func onOneCPU(t *testing.T) {
	t.Helper()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatalf("read affinity: %v", err)
	}
	one.Set(0)
	setAffinity(t, &one)
	t.Cleanup(func() { setAffinity(t, &all) })
}

func setAffinity(t *testing.T, set *unix.CPUSet) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatalf("list threads: %v", err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatalf("thread %q: %v", thread.Name(), err)
		}
		if err := unix.SchedSetaffinity(id, set); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatalf("set affinity: %v", err)
		}
	}
}
