// SPDX-License-Identifier: Apache-2.0

package cnilab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Burst is what came of pods that started at once, or one soon after the other.
type Burst struct {
	Pods   int `json:"pods"`
	AtOnce int `json:"at_once"` // how many started at the same time
	// Enforced of them in the end; InForce before their container sent its first packet, BeforeADD before CNI ADD had
	// even returned.
	Enforced  int `json:"enforced"`
	InForce   int `json:"in_force_before_first_packet"`
	BeforeADD int `json:"in_force_before_add_returned"`
	// Lag is from the return of CNI ADD, after which a runtime starts the pod's first container, to the limit being in
	// force. Start is from there to the container's first packet, ADD what CNI ADD itself took.
	Lag   Spread `json:"add_to_enforced_ms"`
	Start Spread `json:"add_to_first_packet_ms"`
	ADD   Spread `json:"add_ms"`
}

// Spread is a distribution, in milliseconds.
type Spread struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spread(times []time.Duration) Spread {
	if len(times) == 0 {
		return Spread{}
	}
	slices.Sort(times)
	at := func(share float64) float64 {
		i := min(int(share*float64(len(times))), len(times)-1)
		return float64(times[i].Microseconds()) / 1000
	}
	return Spread{at(.5), at(.9), at(.99), at(1)}
}

// started is what one pod did.
type started struct {
	begin, added, sent time.Time
	err                error
}

// packets is how many datagrams a pod's container sends at once when it starts.
const packets = 5

// RunBurst starts pods as a container runtime does, so many at once: CNI ADD, the process that holds the sandbox, the
// container, which sends at once. It then waits until the agent has said of each, by its UID, that its limit is in force.
func RunBurst(ctx context.Context, said func(uid string) (Enforced, bool), network *Network, pods []*Pod, atOnce int) (Burst, error) {
	list := make([]started, len(pods))
	var work errgroup.Group
	work.SetLimit(atOnce)
	for i, p := range pods {
		work.Go(func() error {
			list[i] = p.start(ctx, network)
			return nil
		})
	}
	_ = work.Wait() // each has an error of its own
	b := Burst{Pods: len(pods), AtOnce: atOnce}
	var lag, start, add []time.Duration
	for i, p := range pods {
		s := list[i]
		if s.err != nil {
			return b, s.err
		}
		e, err := await(ctx, said, p.UID())
		if err != nil {
			return b, fmt.Errorf("pod %s: %w", p.Object.Name, err)
		}
		b.Enforced++
		if e.At.Before(s.sent) {
			b.InForce++
		}
		if e.At.Before(s.added) {
			b.BeforeADD++
		}
		lag, start, add = append(lag, max(0, e.At.Sub(s.added))), append(start, s.sent.Sub(s.added)), append(add, s.added.Sub(s.begin))
	}
	b.Lag, b.Start, b.ADD = spread(lag), spread(start), spread(add)
	return b, nil
}

func await(ctx context.Context, said func(uid string) (Enforced, bool), uid string) (Enforced, error) {
	for {
		if e, ok := said(uid); ok {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return Enforced{}, fmt.Errorf("wait for its limit: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *Pod) start(ctx context.Context, network *Network) (s started) {
	s.begin = time.Now()
	addrs, err := p.AddAll(ctx, network)
	s.added = time.Now()
	if err != nil || len(addrs) == 0 {
		s.err = errors.Join(err, fmt.Errorf("%d addresses", len(addrs)))
		return s
	}
	s.err = p.Do(func() error {
		for _, process := range []string{"the sandbox's process", "the container"} {
			if err := exec.CommandContext(ctx, "true").Run(); err != nil {
				return fmt.Errorf("start %s: %w", process, err)
			}
		}
		s.sent = time.Now()
		return Send(packets)
	})
	return s
}

// Send sends datagrams to nobody by the default route of the calling thread's namespace.
func Send(n int) error {
	conn, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), 9).String())
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	defer conn.Close()
	for range n {
		if _, err := conn.Write([]byte("kubepace")); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}
