// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

const (
	continuityRate = 10 * bandwidth.Megabit
	// stage is the time between two things that happen to the agent.
	stage = 1500 * time.Millisecond
	// maxSilence is what nobody may wait for a packet of a pod that has more to send than it may.
	maxSilence = 200 * time.Millisecond
)

// TestContinuity is one TCP and one UDP transfer, which together want far more than the limit, while the agent is
// killed, started again, replaced by another version whose program has other maps, killed again, and replaced by the
// first. In no window of any length more passes than limit × t + 64 KB + limit × horizon, and there is never a silence.
func TestContinuity(t *testing.T) {
	if quick(t) {
		return
	}
	next := os.Getenv("KUBEPACE_ENFORCER_NEXT")
	if next == "" && os.Getenv("KUBEPACE_ENFORCER") != "" {
		netlab.Skip(t, "needs KUBEPACE_ENFORCER_NEXT, an enforcer whose maps have another layout: tests/datapath/next-version.sh makes one")
	}
	n := newNode(t)
	n.write(0, continuityRate.String())
	n.await("pod0=10M")
	horizon := datapath.HorizonPolicing
	if n.list()[0].Mode == "pacing" {
		horizon = datapath.HorizonPacing
	}
	bound := 65536 + bytesIn(continuityRate, horizon)
	quiet := time.Hour
	for range 3 { // a busy machine makes silences of its own
		c, began := n.throughEverything(next)
		burst, longest, at := c.Burst(float64(continuityRate)), time.Duration(0), time.Duration(0)
		for i := 1; i < len(c.Packets); i++ {
			if gap := c.Packets[i].At - c.Packets[i-1].At; gap > longest {
				longest, at = gap, c.Packets[i].At
			}
		}
		quiet = min(quiet, longest)
		t.Logf("%s: burst %d of %d bytes over the limit, longest silence %v, at %v", n.list()[0].Mode, burst, bound, longest, at)
		if burst > bound {
			t.Errorf("a burst of %d bytes over the limit; 64 KB + limit × horizon is %d", burst, bound)
		}
		n.checkStages(c, began)
		if quiet <= maxSilence {
			break
		}
	}
	if quiet > maxSilence {
		t.Errorf("a silence of %v in each of three runs; at most %v is right", quiet, maxSilence)
	}
}

// stages are what happens to the agent, one after the other.
var stages = []string{"with the agent", "after SIGKILL", "started again", "another version", "after its SIGKILL", "the first version"}

// throughEverything is what leaves the pod meanwhile, and when each stage began. The transfer goes on until the last
// stage is over, however long a busy machine takes for it.
func (n *node) throughEverything(next string) (c traffic.Capture, began []time.Time) {
	n.t.Helper()
	first, netnsDir := n.binary, filepath.Dir(n.Pods[0].NetnsPath)
	l := &lab{Topology: n.Topology, t: n.t}
	c = l.meter(func() {
		ctx, end := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer end()
		wg.Go(func() {
			_, err := traffic.TCP(ctx, traffic.TCPOptions{
				From: n.Pods[0], To: n.Host, Addr: n.Remote, Congestion: "cubic", Duration: time.Hour,
			})
			if err != nil {
				n.t.Errorf("TCP: %v", err)
			}
		})
		wg.Go(func() {
			_, err := traffic.UDP(ctx, traffic.UDPOptions{
				From: n.Pods[0], To: n.Host, Addr: n.Remote, Rate: float64(continuityRate), Size: 1200, Duration: time.Hour,
			})
			if err != nil {
				n.t.Errorf("UDP: %v", err)
			}
		})
		run := func(binary string) {
			n.binary = binary
			n.start(netnsDir)
			n.adopted()
		}
		for _, step := range []func(){
			func() {},
			func() { n.kill(syscall.SIGKILL) },
			func() { run(first) },
			func() { n.kill(syscall.SIGTERM); run(next) }, // as a rolling update does
			func() { n.kill(syscall.SIGKILL) },
			func() { run(first) },
		} {
			step()
			began = append(began, time.Now())
			time.Sleep(stage)
		}
	})
	return c.From(n.Pods[0].Addr), began
}

// adopted waits until this version's maps hold the pod: until then its list fails where they were another's.
func (n *node) adopted() {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if list, err := n.tryList(); err == nil && len(list) == 1 && list[0].Limit == continuityRate.String() {
			return
		}
	}
	n.t.Error("the pod was not taken over within 20 s")
}

// checkStages: both transfers went on through each of the stages, and together they used the limit.
func (n *node) checkStages(c traffic.Capture, began []time.Time) {
	n.t.Helper()
	for i, name := range stages {
		from := began[i].Sub(c.Started)
		part := map[uint8]int64{}
		for _, p := range c.Packets {
			if p.At >= from && p.At < from+stage {
				part[p.Protocol] += int64(p.Wire)
			}
		}
		const tcp, udp = 6, 17
		full := bytesIn(continuityRate, stage)
		n.t.Logf("%s: TCP %.0f %%, UDP %.0f %% of the limit", name, 100*float64(part[tcp])/float64(full), 100*float64(part[udp])/float64(full))
		if part[tcp] == 0 || part[udp] == 0 || part[tcp]+part[udp] < full/2 {
			n.t.Errorf("%s: %d bytes of TCP, %d of UDP; the limit is %d", name, part[tcp], part[udp], full)
		}
	}
}
