// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/bench/peer"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// TestOwnPacing: a process of the pod that wants its packets to leave seconds from now, and one that paces itself at a
// crawl, slow nobody but themselves.
func TestOwnPacing(t *testing.T) {
	if quick(t) {
		return
	}
	const rate, d = 10 * bandwidth.Megabit, 4 * time.Second
	beside(t)
	l := newLab(t, netlab.Options{})
	bestOf(t, 3, 0.8*l.wantShare(), func() float64 {
		l.limit(0, rate)
		defer l.limit(0, 0)
		var x transfer
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			_, err := traffic.UDP(ctx, traffic.UDPOptions{
				From: l.Pods[0], To: l.Host, Addr: l.Remote, Rate: 500e3, Size: 500, TxTime: 5 * time.Second, Duration: d,
			})
			if err != nil {
				t.Errorf("send with SO_TXTIME: %v", err)
			}
		})
		wg.Go(func() {
			_, err := traffic.TCP(ctx, traffic.TCPOptions{
				From: l.Pods[0], To: l.Host, Addr: l.Remote, Duration: d, MaxPacing: 100e3,
			})
			if err != nil {
				t.Errorf("send with SO_MAX_PACING_RATE: %v", err)
			}
		})
		x = l.transfer(0, l.Remote, "cubic", 1, d)
		cancel()
		wg.Wait()
		if x.ping.Lost > 0 {
			t.Errorf("%d of %d pings lost", x.ping.Lost, x.ping.Sent)
		}
		checkBound(t, x.capture, rate, l.allowance(rate, 3))
		// What the others leave over, in payload.
		return x.tcp.Rate(time.Second, d) / float64(rate)
	})
}

// TestECN: flows that can be marked are marked and lose nothing, also while somebody captures in the pod, which makes
// the kernel refuse to write into shared packets.
func TestECN(t *testing.T) {
	const rate, d = 10 * bandwidth.Megabit, 4 * time.Second
	beside(t)
	l := newLab(t, netlab.Options{})
	if l.mode != datapath.ModePacing {
		leftOut(t, "policing: there is no queue to mark for")
		return
	}
	for _, n := range []*netlab.Namespace{l.Pods[0].Namespace, l.Host} {
		// Tail loss probes off: what TCP sends again cannot be marked (RFC 3168, 6.1.5), and a probe is that.
		if err := errors.Join(n.Sysctl("net.ipv4.tcp_ecn", "1"), n.Sysctl("net.ipv4.tcp_early_retrans", "0")); err != nil {
			t.Fatal(err)
		}
	}
	for _, capture := range []bool{false, true} {
		name := map[bool]string{false: "alone", true: "with a capture in the pod"}[capture]
		t.Run(name, func(t *testing.T) {
			bestOf(t, 3, l.wantShare(), func() float64 {
				l.limit(0, rate)
				defer l.limit(0, 0)
				if capture {
					m, err := traffic.StartMeter(l.Pods[0], netlab.Eth0)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _, _ = m.Stop() }()
				}
				x := l.transfer(0, l.Remote, "cubic", 2, d)
				counted := l.state(0).Counters
				seen := len(x.capture.Where(func(p traffic.Packet) bool { return p.CE }).Packets)
				t.Logf("%d marked, %d seen marked, %d dropped", counted.Marked, seen, counted.Dropped)
				if counted.Marked == 0 || seen == 0 {
					t.Errorf("%d packets counted as marked, %d seen", counted.Marked, seen)
				}
				if counted.Dropped > 0 {
					t.Logf("%d packets dropped that could have been marked", counted.Dropped)
					return 0 // a busy machine holds answers back, and the flow overshoots
				}
				return x.share(l.mode, rate)
			})
		})
	}
}

// TestRedirectNeigh: a CNI with eBPF host routing sends packets past bridge and routing, behind our program at the
// same hook; they are held all the same.
func TestRedirectNeigh(t *testing.T) {
	const rate = 20 * bandwidth.Megabit
	beside(t)
	l := newLab(t, netlab.Options{})
	if !l.dp.Features().Stamp {
		// bpf_redirect_neigh came with 5.10; on kernels that police it changes nothing that matters here.
		t.Logf("kernel %s: policed at the hook, before the redirection", l.dp.Features().Kernel)
	}
	uplink, err := l.Node.Link(netlab.Uplink)
	if err != nil {
		t.Fatal(err)
	}
	var programs *peer.Programs
	err = l.Node.Do(func() error {
		programs, err = peer.LoadRedirect(uplink.Attrs().Index, l.Remote)
		if err != nil {
			return err
		}
		return programs.AttachRedirect(l.Pods[0].HostIndex)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		err := l.Node.Do(func() error { return errors.Join(programs.Detach(l.Pods[0].HostIndex), programs.Close()) })
		if err != nil {
			t.Error(err)
		}
	}()
	bestOf(t, 3, l.wantShare(), func() float64 {
		l.limit(0, rate)
		defer l.limit(0, 0)
		x := l.transfer(0, l.Remote, "cubic", 2, l.long(3*time.Second))
		if x.ping.Lost > 0 {
			t.Errorf("%d of %d pings lost", x.ping.Lost, x.ping.Sent)
		}
		if runs := l.redirected(programs); runs == 0 {
			t.Error("nothing was redirected: the path was not the one to be tested")
		}
		return l.heldTransfer(t, x, rate, 2)
	})
}

// redirected is how many packets the redirection saw.
func (l *lab) redirected(p *peer.Programs) uint64 {
	l.t.Helper()
	n, err := p.Redirected()
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}
