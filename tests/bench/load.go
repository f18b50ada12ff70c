// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/bench/cost"
	"github.com/kubepace/kubepace/tests/bench/result"
)

// underLoad takes the programs' own run times during a transfer. It is apart from the cases, because the kernel's
// statistics cost time themselves.
func (b *bench) underLoad(ctx context.Context, l *lab) error {
	program, err := cost.PinnedProgram(l.bpffs())
	if err != nil {
		return err
	}
	defer program.Close()
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("enable the kernel's program statistics: %w", err)
	}
	defer stats.Close()
	b.say("the programs' own run times under load ...")
	s := result.Setting{LimitBps: 100e6, CC: "cubic", Flows: 8, Path: l.path}
	ours := map[string]*ebpf.Program{"kubepace": program}
	return errors.Join(
		b.loadOf(ctx, l, result.Kubepace, s, ours),
		b.loadOf(ctx, l, result.FIFO, s, l.peers.ByName()))
}

func (b *bench) loadOf(ctx context.Context, l *lab, v result.Variant, s result.Setting, programs map[string]*ebpf.Program) (err error) {
	lim, err := l.apply(v, s.LimitBps)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.withdraw(v, lim)) }()
	before := map[string]*ebpf.ProgramStats{}
	for name, program := range programs {
		if before[name], err = program.Stats(); err != nil {
			return fmt.Errorf("statistics of %s: %w", name, err)
		}
	}
	if _, err := l.measure(ctx, s, 4*time.Second); ignoreMissed(err) != nil {
		return err
	}
	for name, program := range programs {
		after, err := program.Stats()
		if err != nil {
			return fmt.Errorf("statistics of %s: %w", name, err)
		}
		row := result.Load{Program: name, Setting: s, Runs: after.RunCount - before[name].RunCount}
		if row.Runs > 0 {
			row.NsEach = float64((after.Runtime - before[name].Runtime).Nanoseconds()) / float64(row.Runs)
		}
		b.run.UnderLoad = append(b.run.UnderLoad, row)
		b.say("  %-12s %d runs, %.0f ns each", name, row.Runs, row.NsEach)
	}
	return nil
}
