// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

const (
	exactWindow  = 5 * time.Second
	exactPackets = 200
	tolerance    = 0.02
)

// checkExact fails where any window carried more than the limit and 2 %, and returns the least window's share. While
// policing only the bound holds for a window: TCP goes up and down. It returns void where a window carried more and the
// machine stood still meanwhile.
func (l *lab) checkExact(t *testing.T, c traffic.Capture, rate bandwidth.Rate, flows int, from, to time.Duration) float64 {
	t.Helper()
	checkBound(t, c, rate, l.allowance(rate, flows))
	least, most := c.Extremes(from, to, exactWindow, exactPackets)
	least, most = least/float64(rate), most/float64(rate)
	t.Logf("%v %v: windows carried %.2f to %.2f %% of the limit; the machine stood still for up to %v", l.mode, rate, 100*least, 100*most, l.stalled)
	if l.mode == datapath.ModePacing && most > 1+tolerance {
		if l.stalled > stallVoid {
			return void
		}
		t.Errorf("a window of 5 s carried %.2f %% of the limit", 100*most)
	}
	return least
}

// long is how long to send for: d, or where checkExact is to see windows, long enough for some.
func (l *lab) long(d time.Duration) time.Duration {
	if l.mode == datapath.ModePacing && !testing.Short() {
		return max(d, exactWindow+4*time.Second)
	}
	return d
}

// held holds a capture to its bounds and returns the share of the limit that it used: of the least window of 5 s where
// it is long enough.
func (l *lab) held(t *testing.T, c traffic.Capture, rate bandwidth.Rate, flows int, from, to time.Duration) float64 {
	t.Helper()
	if l.mode == datapath.ModePacing && to-from > exactWindow {
		return l.checkExact(t, c, rate, flows, from, to)
	}
	checkBound(t, c, rate, l.allowance(rate, flows))
	return used(c, l.mode, rate, from, to)
}

// silence keeps a pod from sending anything of its own. A question for a neighbour's address is a third of a second
// at 1k and never gets to the host, where the test counts.
func (l *lab) silence(pod *netlab.Pod) {
	l.t.Helper()
	bridge, err := l.Node.Link(netlab.Bridge)
	if err != nil {
		l.t.Fatal(err)
	}
	eth0, err := pod.Link(netlab.Eth0)
	if err != nil {
		l.t.Fatal(err)
	}
	routes, err := pod.Netlink().RouteGet(l.Remote.AsSlice())
	if err != nil {
		l.t.Fatal(err)
	}
	gateway := &netlink.Neigh{
		LinkIndex: eth0.Attrs().Index, IP: routes[0].Gw, HardwareAddr: bridge.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
	}
	if err := pod.Netlink().NeighSet(gateway); err != nil {
		l.t.Fatalf("%s: neighbour %v: %v", pod.Name, gateway, err)
	}
	if err := pod.Sysctl("net.ipv6.conf.eth0.disable_ipv6", "1"); err != nil {
		l.t.Fatal(err)
	}
}

// TestExactSlow: small packets under the lowest limits, all at once, because they take long.
func TestExactSlow(t *testing.T) {
	if testing.Short() {
		leftOut(t, "short: leaves out what takes two minutes")
		return
	}
	const d = 115 * time.Second
	rates := []bandwidth.Rate{bandwidth.Kilobit, 64 * bandwidth.Kilobit, bandwidth.Megabit}
	sizes := []int{18, 100, 400} // 200 packets of 18 bytes are 96 s at 1k
	l := newLab(t, netlab.Options{Pods: len(rates)})
	if l.mode == datapath.ModePolicing {
		leftOut(t, "policing: TestUDP has the bound")
		return
	}
	for i := range rates {
		l.silence(l.Pods[i])
	}
	bestOf(t, 3, 1-tolerance, func() float64 {
		for i, rate := range rates {
			l.limit(i, rate)
			defer l.limit(i, 0)
		}
		late := make([]time.Duration, len(rates)) // of the senders
		c := l.meter(func() {
			var wg sync.WaitGroup
			for i, rate := range rates {
				wg.Go(func() {
					sent, err := traffic.UDP(context.Background(), traffic.UDPOptions{
						From: l.Pods[i], To: l.Host, Addr: l.Remote, Rate: 2 * float64(rate), Size: sizes[i], Duration: d,
					})
					if err != nil {
						t.Errorf("send: %v", err)
					}
					late[i] = sent.Late
				})
			}
			wg.Wait()
		})
		least := 1.0
		for i, rate := range rates {
			c := c.From(l.Pods[i].Addr)
			// After the burst at the start.
			share := l.checkExact(t, c, rate, 1, c.First()+3*time.Second, c.First()+d-time.Second)
			if share < 1-tolerance && max(l.stalled, late[i]) > stallVoid {
				t.Logf("%v: the sender was late by up to %v", rate, late[i])
				return void
			}
			if share < 1-tolerance {
				t.Errorf("%v: a window carried %.2f %% of the limit; the sender was late by up to %v", rate, 100*share, late[i])
			}
			least = min(least, share)
		}
		return least
	})
}

// TestExact: within 2 % of the limit in every window of 5 s, from 10M to what the machine carries, with one flow and
// with many.
func TestExact(t *testing.T) {
	if testing.Short() {
		leftOut(t, "short: TestTCP has the telling cases")
		return
	}
	const d = 12 * time.Second
	l := newLab(t, netlab.Options{})
	capacity := l.transfer(0, l.Remote, "cubic", 4, 3*time.Second).tcp.Rate(time.Second, 3*time.Second)
	// Of what the machine carries, so much that it is the limit that holds.
	highest := bandwidth.Rate(capacity/1.5e6) * bandwidth.Megabit
	for _, c := range []struct {
		rate  bandwidth.Rate
		cc    string
		flows int
	}{
		{10 * bandwidth.Megabit, "bbr", 1},
		{10 * bandwidth.Megabit, "cubic", 8},
		{10 * bandwidth.Megabit, "cubic", 64},
		{10 * bandwidth.Megabit, "cubic", 256},
		{10 * bandwidth.Megabit, "bbr", 256},
		{100 * bandwidth.Megabit, "cubic", 1},
		{100 * bandwidth.Megabit, "bbr", 64},
		{100 * bandwidth.Megabit, "cubic", 256},
		{500 * bandwidth.Megabit, "cubic", 8},
		{highest, "cubic", 8},
		{bandwidth.Gigabit, "cubic", 8},
	} {
		t.Run(fmt.Sprintf("%s %s %d", c.rate, c.cc, c.flows), func(t *testing.T) {
			want := 1 - tolerance
			if l.mode == datapath.ModePolicing {
				want = 0.85 // of the least window, see TestPolicing for the mean
			}
			if capacity < 1.3*float64(c.rate) {
				t.Logf("the machine carries %.0f Mbit/s: only the bound is tested", capacity/1e6)
				want = 0
			}
			bestOf(t, 3, want, func() float64 {
				l.limit(0, c.rate)
				defer l.limit(0, 0)
				x := l.transfer(0, l.Remote, c.cc, c.flows, d)
				from := x.tcp.Started.Sub(x.capture.Started)
				return l.checkExact(t, x.capture, c.rate, c.flows, from+2*time.Second, from+d)
			})
		})
	}
}

// TestPolicing: a flow under a policed limit uses it. On every kernel, because paths without fq are everywhere.
func TestPolicing(t *testing.T) {
	if quick(t) {
		return
	}
	const d = 10 * time.Second
	beside(t)
	l := newLab(t, netlab.Options{})
	l.mode = datapath.ModePolicing
	capacity := float64(100 * bandwidth.Megabit) // every machine's, and more than the short version wants
	if !testing.Short() {
		capacity = l.transfer(0, l.Remote, "cubic", 1, 3*time.Second).tcp.Rate(time.Second, 3*time.Second)
	}
	for _, c := range []struct {
		rate bandwidth.Rate
		want float64
	}{{10 * bandwidth.Megabit, 0.95}, {100 * bandwidth.Megabit, 0.95}, {bandwidth.Gigabit, 0.93}} {
		for _, cc := range []string{"cubic", "bbr"} {
			if testing.Short() && (cc == "bbr" || c.rate != 10*bandwidth.Megabit) {
				continue
			}
			if capacity < 1.3*float64(c.rate) {
				t.Logf("%v: the machine carries only %.0f Mbit/s", c.rate, capacity/1e6)
				continue
			}
			t.Run(fmt.Sprintf("%s %s", c.rate, cc), func(t *testing.T) {
				bestOf(t, 3, c.want, func() float64 {
					l.limit(0, c.rate)
					defer l.limit(0, 0)
					x := l.transfer(0, l.Remote, cc, 1, d)
					checkBound(t, x.capture, c.rate, l.allowance(c.rate, 1))
					from := x.tcp.Started.Sub(x.capture.Started)
					share := x.capture.Rate(from, from+d) / float64(c.rate)
					t.Logf("%.1f %% of the limit on the wire", 100*share)
					return share
				})
			})
		}
	}
}
