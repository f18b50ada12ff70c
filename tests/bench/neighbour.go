// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// load is what a limited pod sends while its neighbour, which has no limit, pings.
type load struct {
	name string
	send func(ctx context.Context, l *lab, duration time.Duration) error
}

// neighbourLimit is the sending pod's, in bits/s.
const neighbourLimit = 10e6

var loads = []load{
	{"128 TCP flows", func(ctx context.Context, l *lab, duration time.Duration) error {
		_, err := traffic.TCP(ctx, traffic.TCPOptions{
			From: l.pod, To: l.Host, Addr: l.Remote, Flows: 128, Congestion: "cubic", Duration: duration,
		})
		return err
	}},
	{"a flood of 18-byte UDP", func(ctx context.Context, l *lab, duration time.Duration) error {
		_, err := traffic.UDP(ctx, traffic.UDPOptions{
			From: l.pod, To: l.Host, Addr: l.Remote, Rate: neighbourLimit, Size: 18, Duration: duration,
		})
		return err
	}},
}

// neighbour pings from a pod without a limit: with nothing beside, beside a limited pod's load, and beside the same
// load without the limit, in turns.
func (b *bench) neighbour(ctx context.Context, l *lab) error {
	if b.plan.neighbourRounds == 0 {
		return nil
	}
	b.say("an unlimited pod's ping beside a pod limited to %s ...", result.Bits(neighbourLimit))
	for _, load := range loads {
		row := result.Neighbour{Beside: load.name, LimitBps: neighbourLimit, WithinMs: result.NeighbourToleranceMs}
		for range b.plan.neighbourRounds {
			if err := l.neighbourRound(ctx, load, &row); err != nil {
				return fmt.Errorf("neighbour of %s: %w", load.name, err)
			}
		}
		row.AboveMs = result.Median(row.BusyP99Ms) - result.Median(row.IdleP99Ms)
		b.run.Neighbours = append(b.run.Neighbours, row)
		b.say("  beside %-24s p99 idle %5.1f limited %5.1f unlimited %5.1f ms; lost %d of %d", load.name,
			result.Median(row.IdleP99Ms), result.Median(row.BusyP99Ms), result.Median(row.FreeP99Ms), row.Lost, row.Sent)
	}
	return b.save()
}

func (l *lab) neighbourRound(ctx context.Context, load load, row *result.Neighbour) error {
	idle, err := l.neighbourPing(ctx)
	if err != nil {
		return err
	}
	limited, err := l.neighbourBeside(ctx, load, result.Kubepace)
	if err != nil {
		return err
	}
	free, err := l.neighbourBeside(ctx, load, result.None)
	if err != nil {
		return err
	}
	row.IdleP99Ms = append(row.IdleP99Ms, result.Milliseconds(idle.Percentile(99)))
	row.BusyP99Ms = append(row.BusyP99Ms, result.Milliseconds(limited.Percentile(99)))
	row.FreeP99Ms = append(row.FreeP99Ms, result.Milliseconds(free.Percentile(99)))
	row.Lost += limited.Lost
	row.Sent += limited.Sent
	return nil
}

func (l *lab) neighbourPing(ctx context.Context) (traffic.PingResult, error) {
	return traffic.Ping(ctx, traffic.PingOptions{From: l.Pods[1], Addr: l.Remote, Interval: pingInterval, Duration: round})
}

func (l *lab) neighbourBeside(ctx context.Context, load load, v result.Variant) (ping traffic.PingResult, err error) {
	lim, err := l.apply(v, neighbourLimit)
	if err != nil {
		return ping, err
	}
	sent := make(chan error, 1)
	go func() { sent <- load.send(ctx, l, settle+round) }()
	time.Sleep(settle)
	ping, err = l.neighbourPing(ctx)
	return ping, errors.Join(err, <-sent, l.withdraw(v, lim))
}
