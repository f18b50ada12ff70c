// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// round is how long the idle path is pinged, and as long again beside bulk transfers.
const round = 3 * time.Second

// latency compares pings beside kubepace's bulk transfers with those of the idle path, in turns.
func (b *bench) latency(ctx context.Context, l *lab) error {
	for _, limit := range b.plan.latencyLimits {
		for _, cc := range b.plan.ccs {
			for _, flows := range b.plan.flows {
				s := result.Setting{LimitBps: limit, CC: cc, Flows: flows, Path: l.path}
				row, err := b.latencyOf(ctx, l, s)
				if err != nil {
					return fmt.Errorf("latency, %s: %w", s, err)
				}
				b.run.Latency = append(b.run.Latency, row)
				b.say("  %-30s p99 idle %5.1f busy %5.1f: %+5.1f ms above; lost %d of %d; %.1f stamped with no delay for each ping",
					s, result.Median(row.IdleP99Ms), result.Median(row.BusyP99Ms), row.AboveMs, row.Lost, row.Sent, row.SparsePer)
			}
		}
	}
	return b.save()
}

func (b *bench) latencyOf(ctx context.Context, l *lab, s result.Setting) (result.Latency, error) {
	var idle, busy []float64
	var lost, sent int
	var sparse uint64
	for range b.plan.rounds {
		quiet, err := traffic.Ping(ctx, traffic.PingOptions{From: l.pod, Addr: l.Remote, Interval: pingInterval, Duration: round})
		if err != nil {
			return result.Latency{}, fmt.Errorf("ping the idle path: %w", err)
		}
		m, counted, err := l.counted(ctx, s)
		if err != nil {
			return result.Latency{}, err
		}
		idle = append(idle, result.Milliseconds(quiet.Percentile(99)))
		busy = append(busy, result.Milliseconds(m.ping.Percentile(99)))
		lost += m.ping.Lost
		sent += m.ping.Sent
		sparse += counted
	}
	row := result.NewLatency(s, idle, busy)
	row.Lost, row.Sent, row.SparsePer = lost, sent, float64(sparse)/float64(max(sent, 1))
	return row, nil
}

// counted runs one transfer under kubepace, and returns how many packets the program let go ahead of the backlog.
func (l *lab) counted(ctx context.Context, s result.Setting) (m measurement, sparse uint64, err error) {
	lim, err := l.apply(result.Kubepace, s.LimitBps)
	if err != nil {
		return m, 0, err
	}
	m, err = l.measure(ctx, s, settle+round)
	if err = ignoreMissed(err); err == nil {
		err = l.Node.Do(func() error {
			states, err := datapath.Read(l.bpffs())
			if err != nil || len(states) != 1 {
				return fmt.Errorf("read counters of %d pods, want 1: %w", len(states), err)
			}
			sparse = states[0].Counters.Sparse
			return nil
		})
	}
	if withdrawErr := l.withdraw(result.Kubepace, lim); err == nil {
		err = withdrawErr
	}
	return m, sparse, err
}
