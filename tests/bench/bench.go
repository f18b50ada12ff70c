// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/tests/bench/cost"
	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// Files of the results folder.
const (
	casesFile = "datapath.json"
	runFile   = "run.json"
	costFile  = "cost-vm.json"     // where the cases ran
	hereFile  = "cost-native.json" // on the machine that started them
)

// bench is one run of the whole plan.
type bench struct {
	plan   plan
	plugin string // path of the CNI bandwidth plugin
	out    string // folder
	stdout io.Writer

	began time.Time
	run   result.Run
	cases []result.Case
}

func (b *bench) all(ctx context.Context) error {
	b.began = time.Now()
	b.run = result.Run{
		Mode: b.plan.mode, Kernel: release(), CPUs: runtime.NumCPU(), Started: b.began.UTC().Format(time.RFC3339),
		CaseSecs: b.plan.duration.Seconds(), Revision: os.Getenv("BENCH_REVISION"), PluginText: os.Getenv("BENCH_PLUGIN"),
	}
	for _, path := range b.plan.paths {
		if err := b.path(ctx, path); err != nil {
			return fmt.Errorf("path %s: %w", path, err)
		}
	}
	if !b.plan.costs {
		return b.save()
	}
	if err := b.costs(); err != nil {
		b.warn("costs not measured: %v", err)
	}
	return b.save()
}

func (b *bench) costs() error {
	dir, err := os.MkdirTemp("", "kubepace-cost")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	b.say("cost per packet by BPF_PROG_TEST_RUN ...")
	costs, err := cost.Measure(dir, b.say)
	if err != nil {
		return err
	}
	return save(filepath.Join(b.out, costFile), costs)
}

// path runs the cases of one topology, and saves after each: a run that ends early is not lost.
func (b *bench) path(ctx context.Context, path result.Path) (err error) {
	l, err := newLab(path, b.plugin)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := b.warmUp(ctx, l); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	for _, s := range b.plan.steps(path) {
		c, err := l.control(ctx, s.Setting)
		if err != nil {
			return err
		}
		b.run.Controls = append(b.run.Controls, c)
		for _, v := range s.variants {
			if err := b.one(ctx, l, s.Setting, v); err != nil {
				return fmt.Errorf("%s, %s: %w", s.Setting, v, err)
			}
		}
		if err := b.closeOnes(ctx, l, s); err != nil {
			return fmt.Errorf("%s again: %w", s.Setting, err)
		}
		if err := b.save(); err != nil {
			return err
		}
	}
	if path == b.plan.paths[0] {
		if err := b.latency(ctx, l); err != nil {
			return err
		}
		if err := b.neighbour(ctx, l); err != nil {
			return err
		}
		return b.underLoad(ctx, l)
	}
	return nil
}

// warmUp runs every variant once, unrecorded. An emulated processor translates code when it first runs: the first
// flow would take the delay for its least round trip, and TCP would keep its packets small ever after.
func (b *bench) warmUp(ctx context.Context, l *lab) error {
	s := result.Setting{LimitBps: b.plan.limits[0], CC: b.plan.ccs[0], Flows: b.plan.flows[0], Path: l.path}
	b.say("warming up on path %s ...", l.path)
	for _, v := range b.plan.variants {
		lim, err := l.apply(v, s.LimitBps)
		if err != nil {
			return err
		}
		_, err = l.measure(ctx, s, 2*settle)
		if err := errors.Join(ignoreMissed(err), l.withdraw(v, lim)); err != nil {
			return err
		}
	}
	return nil
}

// ignoreMissed is for measurements that are thrown away.
func ignoreMissed(err error) error {
	if errors.Is(err, traffic.ErrMeterDropped) {
		return nil
	}
	return err
}

// one runs one case and keeps it.
func (b *bench) one(ctx context.Context, l *lab, s result.Setting, v result.Variant) error {
	c, bucket, err := b.measure(ctx, l, s, v)
	if err == nil {
		b.keep(c, bucket)
	}
	return err
}

func (b *bench) measure(ctx context.Context, l *lab, s result.Setting, v result.Variant) (c result.Case, bucket *result.Bucket, err error) {
	if v == result.None {
		s.LimitBps = 0
	}
	lim, err := l.apply(v, s.LimitBps)
	if err != nil {
		return c, nil, err
	}
	defer func() { err = errors.Join(err, l.withdraw(v, lim)) }()
	m, err := l.measure(ctx, s, b.plan.duration)
	if errors.Is(err, traffic.ErrMeterDropped) {
		b.warn("%s, %s: %v; its rates are too low", s, v, err)
		err = nil
	}
	if err != nil {
		return c, nil, err
	}
	c = m.toCase(s)
	c.Variant, c.Kernel = v, b.run.Kernel
	err = l.Node.Do(func() error {
		drops, err := lim.drops()
		c.Drops = int64(drops)
		return err
	})
	return c, lim.bucket, err
}

// Processor time repeats to 3 to 5 %, by where timers happen to fall. Where two variants are as close as that, both are
// measured again, in turn, and for each the median counts.
const (
	closeCPU  = 0.06
	moreTimes = 2
)

// closeOnes measures processor time again where kubepace's and the small bucket's are close. All else stays as it was
// measured first.
func (b *bench) closeOnes(ctx context.Context, l *lab, s step) error {
	ours, theirs := b.find(s.Setting, result.Kubepace), b.find(s.Setting, result.TBFSmall)
	if !b.plan.closeOnes || ours == nil || theirs == nil || !isClose(ours.CPUSecondsPerGB, theirs.CPUSecondsPerGB) {
		return nil
	}
	pair := []*result.Case{ours, theirs}
	for _, c := range pair {
		c.CPURounds = []float64{c.CPUSecondsPerGB}
	}
	for range moreTimes {
		for _, c := range pair {
			again, _, err := b.measure(ctx, l, s.Setting, c.Variant)
			if err != nil {
				return err
			}
			c.CPURounds = append(c.CPURounds, again.CPUSecondsPerGB)
		}
	}
	for _, c := range pair {
		c.CPUSecondsPerGB = result.Median(c.CPURounds)
		b.say("        %4.0fs %-14s %-34s %.2f cpu-s/GB, the median of %.2f", time.Since(b.began).Seconds(), c.Variant, c.Setting(), c.CPUSecondsPerGB, c.CPURounds)
	}
	return nil
}

func isClose(a, b float64) bool { return math.Abs(a-b) <= closeCPU*max(a, b) }

// find returns the case of a setting that is kept, nil for none.
func (b *bench) find(s result.Setting, v result.Variant) *result.Case {
	for i := range b.cases {
		if c := &b.cases[i]; c.Variant == v && c.Setting() == s {
			return c
		}
	}
	return nil
}

func (b *bench) keep(c result.Case, bucket *result.Bucket) {
	b.cases = append(b.cases, c)
	if bucket != nil {
		known := false
		for _, other := range b.run.Buckets {
			known = known || (other.Variant == c.Variant && other.LimitBps == c.LimitBps)
		}
		if !known {
			b.run.Buckets = append(b.run.Buckets, *bucket)
		}
	}
	b.say("%3d/%d %4.0fs %-14s %-34s %8.2f Mbit/s  1st s %8.2f Mbit  ping p50 %7.1f p99 %7.1f max %7.1f ms lost %d  retr %d drops %d  %5.1f cpu-s/GB  %.1f seg  Jain %.3f",
		len(b.cases), b.plan.cases(), time.Since(b.began).Seconds(), c.Variant, c.Setting(), c.RateBps/1e6, float64(c.FirstSecondBits)/1e6,
		c.PingMs.P50, c.PingMs.P99, c.PingMs.Max, c.PingMs.Lost, c.Retransmits, c.Drops, c.CPUSecondsPerGB, c.SegmentsPerPacket, c.Jain)
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.stdout, format+"\n", args...) }

func (b *bench) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.run.Warnings = append(b.run.Warnings, text)
	b.say("warning: %s", text)
}

func (b *bench) save() error {
	b.run.TookSecs = time.Since(b.began).Seconds()
	file, err := os.Create(filepath.Join(b.out, casesFile))
	if err != nil {
		return fmt.Errorf("save cases: %w", err)
	}
	err = errors.Join(result.WriteCases(file, b.cases), file.Close())
	return errors.Join(err, save(filepath.Join(b.out, runFile), b.run))
}

// save writes a value as JSON.
func save[T any](path string, v T) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	return errors.Join(result.Write(file, v), file.Close())
}

// release is the running kernel's, as in uname -r.
func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
