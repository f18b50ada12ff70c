// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// transfer is one measured bulk transfer with a ping beside it, from the same pod.
type transfer struct {
	tcp     traffic.TCPResult
	ping    traffic.PingResult
	capture traffic.Capture
}

// share is how much of the limit the wire carried after the first second.
func (x transfer) share(mode datapath.Mode, rate bandwidth.Rate) float64 {
	from := x.tcp.Started.Sub(x.capture.Started) + time.Second
	return used(x.capture, mode, rate, from, from+x.tcp.Elapsed-time.Second)
}

// heldTransfer is held after the beginning: two seconds, one of a short transfer.
func (l *lab) heldTransfer(t *testing.T, x transfer, rate bandwidth.Rate, flows int) float64 {
	t.Helper()
	from, beginning := x.tcp.Started.Sub(x.capture.Started), 2*time.Second
	if x.tcp.Elapsed < exactWindow {
		beginning = time.Second
	}
	return l.held(t, x.capture, rate, flows, from+beginning, from+x.tcp.Elapsed)
}

func (l *lab) transfer(pod int, to netip.Addr, cc string, flows int, d time.Duration) (x transfer) {
	l.t.Helper()
	ctx := context.Background()
	var tcpErr, pingErr error
	from := l.Pods[pod]
	src := from.Addr
	if to.Is6() {
		src = from.Addr6
	}
	x.capture = l.meter(func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			x.tcp, tcpErr = traffic.TCP(ctx, traffic.TCPOptions{
				From: from, To: l.Host, Addr: to, Flows: flows, Congestion: cc, Duration: d,
			})
		})
		wg.Go(func() {
			x.ping, pingErr = traffic.Ping(ctx, traffic.PingOptions{From: from, Addr: to, Duration: d})
		})
		wg.Wait()
	})
	if tcpErr != nil || pingErr != nil {
		l.t.Fatalf("transfer: %v, ping: %v", tcpErr, pingErr)
	}
	// Behind SNAT all packets carry the node's address.
	if c := x.capture.From(src); len(c.Packets) > 0 {
		x.capture = c
	}
	l.t.Logf("%s, %d flows, %v: payload %.2f Mbit/s, Jain %.3f, resent %.1f %%; ping %v", cc, flows, l.mode,
		x.tcp.Rate(0, d)/1e6, x.tcp.Jain(), 100*x.tcp.Loss(), x.ping)
	return x
}

// wantShare is the least share of the limit that one busy run must reach at its best.
func (l *lab) wantShare() float64 {
	if l.mode == datapath.ModePacing {
		return 0.98
	}
	return 0.93
}

// TestTCP: the limit is kept from the first packet on and used; a ping from the same pod is not lost, and the program
// itself says that it was not delayed.
func TestTCP(t *testing.T) {
	l := newLab(t, netlab.Options{})
	for _, c := range []struct {
		name  string
		rate  bandwidth.Rate
		cc    string
		flows int
	}{
		{"10M cubic 1", 10 * bandwidth.Megabit, "cubic", 1},
		{"10M bbr 8", 10 * bandwidth.Megabit, "bbr", 8},
		{"10M cubic 64", 10 * bandwidth.Megabit, "cubic", 64},
		{"100M cubic 8", 100 * bandwidth.Megabit, "cubic", 8},
		{"100M bbr 1", 100 * bandwidth.Megabit, "bbr", 1},
	} {
		if testing.Short() && c.flows > 1 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			bestOf(t, 3, l.wantShare(), func() float64 {
				l.limit(0, c.rate)
				before := l.state(0).Counters
				x := l.transfer(0, l.Remote, c.cc, c.flows, 4*time.Second)
				after := l.state(0).Counters
				l.limit(0, 0)
				checkBound(t, x.capture, c.rate, l.allowance(c.rate, c.flows))
				if x.ping.Lost > 0 {
					t.Errorf("%d of %d pings lost", x.ping.Lost, x.ping.Sent)
				}
				if sparse := after.Sparse - before.Sparse; sparse < uint64(x.ping.Sent)/2 {
					t.Errorf("%d packets went ahead of the backlog, with %d pings sent", sparse, x.ping.Sent)
				}
				return x.share(l.mode, c.rate)
			})
		})
	}
}

// TestPaths: the limit is the same whatever way packets take out of the node.
func TestPaths(t *testing.T) {
	const rate = 20 * bandwidth.Megabit
	beside(t)
	for _, c := range []struct {
		name string
		o    netlab.Options
		v6   bool
	}{
		{"IPv6", netlab.Options{}, true},
		{"VXLAN", netlab.Options{VXLAN: true}, false},
		{"SNAT", netlab.Options{SNAT: true}, false},
		{"no bridge", netlab.Options{Direct: true}, false},
		{"four queues", netlab.Options{UplinkQueues: 4}, false},
		{"no offloads", netlab.Options{NoOffload: true}, false},
	} {
		if testing.Short() && (c.o.NoOffload || c.o.SNAT) || quickly && (c.o.Direct || c.o.UplinkQueues > 0) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			beside(t)
			l := newLab(t, c.o)
			to := l.Remote
			if c.v6 {
				to = l.Remote6
			}
			bestOf(t, 3, l.wantShare(), func() float64 {
				l.limit(0, rate)
				defer l.limit(0, 0)
				x := l.transfer(0, to, "cubic", 2, l.long(3*time.Second))
				if x.ping.Lost > 0 {
					t.Errorf("%d of %d pings lost", x.ping.Lost, x.ping.Sent)
				}
				return l.heldTransfer(t, x, rate, 2)
			})
		})
	}
}

// TestSameNode: traffic between pods of one node is under the limit too, and paced: fq is on the receiving veth, and
// without it the first burst would be a whole horizon.
func TestSameNode(t *testing.T) {
	const rate = 20 * bandwidth.Megabit
	beside(t)
	l := newLab(t, netlab.Options{Pods: 2})
	d := l.long(4 * time.Second)
	bestOf(t, 3, l.wantShare(), func() float64 {
		l.limit(0, rate)
		defer l.limit(0, 0)
		m, err := traffic.StartMeter(l.Pods[1], netlab.Eth0)
		if err != nil {
			t.Fatalf("start meter: %v", err)
		}
		x, err := traffic.TCP(context.Background(), traffic.TCPOptions{
			From: l.Pods[0], To: l.Pods[1], Addr: l.Pods[1].Addr, Congestion: "cubic", Duration: d,
		})
		c, stopErr := m.Stop()
		if err := errors.Join(err, stopErr); err != nil {
			t.Fatal(err)
		}
		c = c.From(l.Pods[0].Addr)
		counted := l.state(0).Counters
		t.Logf("%v: payload %.2f Mbit/s; %+v", l.mode, x.Rate(0, d)/1e6, counted)
		if paced := l.mode == datapath.ModePacing; paced != (counted.Delayed > 0) {
			t.Errorf("%d packets delayed while %v", counted.Delayed, l.mode)
		}
		from := x.Started.Sub(c.Started)
		return l.held(t, c, rate, 1, from+time.Second, from+x.Elapsed)
	})
}

// TestLiveChange: up, down and away during one transfer, with no burst at any change.
func TestLiveChange(t *testing.T) {
	beside(t)
	l := newLab(t, netlab.Options{})
	steps := []bandwidth.Rate{10 * bandwidth.Megabit, 20 * bandwidth.Megabit, 5 * bandwidth.Megabit}
	const each = 2 * time.Second
	l.limit(0, steps[0])
	done := make(chan traffic.TCPResult, 1)
	before, after := make([]time.Time, len(steps)), make([]time.Time, len(steps)) // each limit was set
	c := l.meter(func() {
		go func() {
			x, err := traffic.TCP(context.Background(), traffic.TCPOptions{
				From: l.Pods[0], To: l.Host, Addr: l.Remote, Congestion: "cubic", Duration: each * time.Duration(len(steps)),
			})
			if err != nil {
				t.Errorf("transfer: %v", err)
			}
			done <- x
		}()
		for i, rate := range steps[1:] {
			time.Sleep(each)
			before[i+1] = time.Now()
			l.limit(0, rate)
			after[i+1] = time.Now()
		}
		<-done
	})
	part := c.From(l.Pods[0].Addr)
	highest := bandwidth.Rate(0)
	for i, rate := range steps {
		highest = max(highest, rate)
		from, to := part.First(), c.Elapsed
		if i > 0 {
			from = before[i].Sub(c.Started)
		}
		if i+1 < len(steps) {
			to = before[i+1].Sub(c.Started)
		}
		under := part.Where(func(p traffic.Packet) bool { return p.At >= from && p.At < to })
		t.Logf("%s: %.2f Mbit/s", rate, under.Rate(from, to)/1e6)
		if len(under.Packets) == 0 {
			t.Errorf("%s: nothing was sent", rate)
		}
		// What was admitted under the limit before may still leave, and until the new one is set still is.
		setting := after[i].Sub(before[i])
		checkBound(t, under, rate, l.allowance(highest, 1)+bytesIn(highest, datapath.HorizonPacing+setting))
	}
	if dropped := l.state(0).Counters.Dropped; dropped == 0 {
		t.Error("nothing was dropped: cubic was never held")
	}
}

// TestRestart: an agent that goes and comes back during a transfer changes nothing.
func TestRestart(t *testing.T) {
	if quick(t) {
		return
	}
	const rate, d = 10 * bandwidth.Megabit, 5 * time.Second
	beside(t)
	l := newLab(t, netlab.Options{})
	l.limit(0, rate)
	c := l.meter(func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := traffic.TCP(context.Background(), traffic.TCPOptions{
				From: l.Pods[0], To: l.Host, Addr: l.Remote, Congestion: "cubic", Duration: d,
			})
			if err != nil {
				t.Errorf("transfer: %v", err)
			}
		})
		time.Sleep(d / 3)
		if err := l.dp.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		time.Sleep(d / 3)
		l.open()
		l.limit(0, rate)
		wg.Wait()
	}).From(l.Pods[0].Addr)
	checkBound(t, c, rate, l.allowance(rate, 1))
	if used := c.Rate(c.First()+time.Second, c.First()+d) / float64(rate); used < 0.5 {
		t.Errorf("the transfer stalled: %.0f %% of the limit", 100*used)
	}
}

// TestFair: flows of one pod share its limit, without a queue for each. Only where they are paced: a policer has
// nothing but loss, and TCP's timeouts decide.
func TestFair(t *testing.T) {
	const rate, d = 10 * bandwidth.Megabit, 10 * time.Second
	if testing.Short() {
		leftOut(t, "short: fairness is the same on every kernel that paces")
		return
	}
	l := newLab(t, netlab.Options{})
	if l.mode != datapath.ModePacing {
		leftOut(t, "policing: nothing to assert")
		return
	}
	for _, c := range []struct {
		cc    string
		flows int
		want  float64
	}{{"cubic", 8, 0.95}, {"cubic", 64, 0.9}, {"bbr", 8, 0.95}, {"bbr", 64, 0.9}} {
		t.Run(fmt.Sprintf("%d flows of %s", c.flows, c.cc), func(t *testing.T) {
			best := 0.0
			for i := 0; i < 3 && best < c.want; i++ {
				l.limit(0, rate)
				best = max(best, l.transfer(0, l.Remote, c.cc, c.flows, d).tcp.Jain())
				l.limit(0, 0)
			}
			if best < c.want {
				t.Errorf("Jain's index is %.3f at best, want %.2f", best, c.want)
			}
		})
	}
}
