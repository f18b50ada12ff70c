// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
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

// TestUDP at twice the limit, small, whole and in fragments.
func TestUDP(t *testing.T) {
	l := newLab(t, netlab.Options{})
	onOneCPU(t)
	for _, c := range []struct {
		rate bandwidth.Rate
		size int
		v6   bool
		d    time.Duration
	}{
		{64 * bandwidth.Kilobit, 100, false, 6 * time.Second},
		{10 * bandwidth.Megabit, 1200, false, 3 * time.Second},
		{10 * bandwidth.Megabit, 1200, true, 3 * time.Second},
		{10 * bandwidth.Megabit, 4000, false, 3 * time.Second},
		{10 * bandwidth.Megabit, 4000, true, 3 * time.Second},
		{100 * bandwidth.Megabit, 1472, false, 3 * time.Second},
		{100 * bandwidth.Megabit, 8000, false, 3 * time.Second},
		{500 * bandwidth.Megabit, 8000, false, 3 * time.Second},
	} {
		if testing.Short() && (c.rate != 10*bandwidth.Megabit || c.v6 != (c.size > 1500)) {
			continue
		}
		if quickly && !c.v6 {
			continue
		}
		// A machine that paces here is an emulated one, and does not send twice that.
		if c.rate > 100*bandwidth.Megabit && l.mode == datapath.ModePacing {
			continue
		}
		to := l.Remote
		if c.v6 {
			to = l.Remote6
		}
		t.Run(fmt.Sprintf("%s of %d bytes to %s", c.rate, c.size, to), func(t *testing.T) {
			bestOf(t, 3, l.wantShare(), func() float64 {
				l.limit(0, c.rate)
				defer l.limit(0, 0)
				return l.flood(t, to, c.rate, c.size, l.long(c.d))
			})
		})
	}
}

// flood offers twice the limit and returns the share of what could be sent that arrived, after the burst at the
// beginning.
func (l *lab) flood(t *testing.T, to netip.Addr, rate bandwidth.Rate, size int, d time.Duration) float64 {
	t.Helper()
	var u traffic.UDPResult
	var err error
	c := l.meter(func() {
		u, err = traffic.UDP(context.Background(), traffic.UDPOptions{
			From: l.Pods[0], To: l.Host, Addr: to, Rate: 2 * float64(rate), Size: size, Duration: d,
		})
	}).Where(func(p traffic.Packet) bool { return p.Protocol == 17 })
	if err != nil {
		t.Fatalf("flood: %v", err)
	}
	t.Logf("%v: sent %d datagrams, received %d, wire %.3f Mbit/s", l.mode, u.Sent, u.Received, c.Rate(c.First()+d/3, c.First()+d)/1e6)
	if u.Reordered > 0 {
		t.Errorf("%d datagrams reordered", u.Reordered)
	}
	// Fragments of a dropped datagram are not let through: what arrived on the wire is whole datagrams.
	if wire, payload := c.Bytes(0, c.Elapsed), u.Received*int64(size); size > 1500 && float64(payload) < 0.9*float64(wire) {
		t.Errorf("%d bytes of payload out of %d on the wire: datagrams were torn", payload, wire)
	}
	share := l.held(t, c, rate, 1, c.First()+d/3, c.First()+d)
	if offered := float64(u.Sent) * float64(size) * 8 / d.Seconds(); offered < 1.1*float64(rate) {
		t.Logf("the machine sends %.1f Mbit/s at most: only the bound is tested", offered/1e6)
		return l.wantShare()
	}
	return share
}

// TestNeighbour: a pod without limit beside a limited one that floods with small packets loses nothing.
func TestNeighbour(t *testing.T) {
	if quick(t) {
		return
	}
	const d = 4 * time.Second
	l := newLab(t, netlab.Options{Pods: 2})
	l.limit(0, 10*bandwidth.Megabit)
	var ping traffic.PingResult
	var pingErr, udpErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, udpErr = traffic.UDP(context.Background(), traffic.UDPOptions{
			From: l.Pods[0], To: l.Host, Addr: l.Remote, Rate: 10e6, Size: 18, Duration: d,
		})
	})
	wg.Go(func() {
		ping, pingErr = traffic.Ping(context.Background(), traffic.PingOptions{From: l.Pods[1], Addr: l.Remote, Duration: d})
	})
	wg.Wait()
	if udpErr != nil || pingErr != nil {
		t.Fatalf("flood: %v, ping: %v", udpErr, pingErr)
	}
	t.Logf("%v: %v; flooder %+v", l.mode, ping, l.state(0).Counters)
	if ping.Lost > 0 {
		t.Errorf("the neighbour lost %d of %d pings", ping.Lost, ping.Sent)
	}
}

// TestNeighbourOfManyFlows: the same beside 128 flows of limited pods, which fq has to keep apart from the neighbour's.
func TestNeighbourOfManyFlows(t *testing.T) {
	const d, limited = 4 * time.Second, 4
	if testing.Short() {
		leftOut(t, "short: TestNeighbour has the flood")
		return
	}
	l := newLab(t, netlab.Options{Pods: limited + 1})
	var wg sync.WaitGroup
	for i := range limited {
		l.limit(i, 10*bandwidth.Megabit)
		wg.Go(func() {
			_, err := traffic.TCP(context.Background(), traffic.TCPOptions{
				From: l.Pods[i], To: l.Host, Addr: l.Remote, Flows: 128 / limited, Congestion: "cubic", Duration: d,
			})
			if err != nil {
				t.Errorf("transfer: %v", err)
			}
		})
	}
	ping, err := traffic.Ping(context.Background(), traffic.PingOptions{From: l.Pods[limited], Addr: l.Remote, Duration: d})
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %v", l.mode, ping)
	if ping.Lost > 0 {
		t.Errorf("the neighbour lost %d of %d pings", ping.Lost, ping.Sent)
	}
}

// TestTwoSenders: two processors that send at once do not lose each other's updates of the clock.
func TestTwoSenders(t *testing.T) {
	const rate = 20 * bandwidth.Megabit
	beside(t)
	l := newLab(t, netlab.Options{})
	d := l.long(3 * time.Second)
	bestOf(t, 3, l.wantShare(), func() float64 {
		l.limit(0, rate)
		defer l.limit(0, 0)
		c := l.meter(func() {
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					_, err := traffic.UDP(context.Background(), traffic.UDPOptions{
						From: l.Pods[0], To: l.Host, Addr: l.Remote, Rate: float64(rate) / 2, Size: 1000, Duration: d,
					})
					if err != nil {
						t.Errorf("send: %v", err)
					}
				})
			}
			wg.Wait()
		}).From(l.Pods[0].Addr)
		counted := l.state(0).Counters
		if wire := c.Bytes(0, c.Elapsed); uint64(wire) > counted.Bytes {
			t.Errorf("%d bytes on the wire, %d counted", wire, counted.Bytes)
		}
		share := l.held(t, c, rate, 4, c.First()+time.Second, c.First()+d)
		if share < l.wantShare() && l.stalled > stallVoid {
			return void
		}
		return share
	})
}
