// SPDX-License-Identifier: Apache-2.0

// Package cost measures what kubepace's program costs per packet, by BPF_PROG_TEST_RUN: the kernel runs the loaded
// program again and again on one packet and takes the time itself. No packet is sent, so that the figures hold for
// the machine's own kernel even where it has no fq.
package cost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/bench/peer"
	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

const (
	repeats    = 100_000
	rounds     = 7
	manyPods   = 10_000
	loopback   = 1 // the device of a test run, and the pod's device here
	frameBytes = 1514

	// The stamped packets: fewer than 1024 may be parked, and at 100M 600 of them are 73 ms, below the horizon.
	stampedRate   = bandwidth.Rate(100_000_000)
	stampedBatch  = 600
	stampedRounds = 25
)

// bench is the program under test in a network namespace of its own.
type bench struct {
	ns      *netlab.Namespace
	bpffs   string
	dp      *datapath.Datapath
	program *ebpf.Program
	peers   *peer.Programs
	packet  []byte
	empty   float64 // ns
}

// Measure returns the costs on the running kernel; dir is a folder for a bpf filesystem. Log gets a line for each step.
func Measure(dir string, log func(format string, args ...any)) (costs result.Costs, err error) {
	b := &bench{bpffs: filepath.Join(dir, "bpf", "kubepace"), packet: frame()}
	defer func() { err = errors.Join(err, b.close(filepath.Dir(b.bpffs))) }()
	if err := b.open(); err != nil {
		return costs, err
	}
	costs.Kernel, costs.Machine = b.dp.Features().Kernel, Machine()
	err = b.ns.Do(func() error {
		if costs.Empty, err = b.measureEmpty(); err != nil {
			return err
		}
		b.empty = costs.Empty
		for _, pods := range []int{1, manyPods} {
			if pods > 1 {
				log("putting %d pods into the maps", pods)
				if err := b.fill(pods); err != nil {
					return err
				}
			}
			rows, err := b.measure(pods)
			costs.Rows = append(costs.Rows, rows...)
			if err != nil {
				return err
			}
		}
		costs.Maps, err = b.maps()
		return err
	})
	return costs, err
}

func (b *bench) open() error {
	mount := filepath.Dir(b.bpffs)
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", mount, err)
	}
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf filesystem at %s: %w", mount, err)
	}
	var err error
	if b.ns, err = netlab.NewNamespace("cost"); err != nil {
		return err
	}
	err = b.ns.Do(func() error {
		if b.dp, err = datapath.Open(datapath.Options{BPFFS: b.bpffs, Log: logr.Discard()}); err != nil {
			return fmt.Errorf("open the datapath: %w", err)
		}
		b.peers, err = peer.Load(loopback, unspecified)
		return err
	})
	if err != nil {
		return err
	}
	b.program, err = PinnedProgram(b.bpffs)
	return err
}

func (b *bench) close(mount string) error {
	var errs []error
	if b.program != nil {
		errs = append(errs, b.program.Close())
	}
	if b.peers != nil {
		errs = append(errs, b.peers.Close())
	}
	if b.dp != nil {
		errs = append(errs, b.dp.Close(), b.ns.Do(func() error { return datapath.Cleanup(b.bpffs) }))
	}
	if b.ns != nil {
		errs = append(errs, b.ns.Close())
	}
	if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", mount, err))
	}
	return errors.Join(errs...)
}

// PinnedProgram opens kubepace's program as it is pinned under a bpffs folder. The caller closes it.
func PinnedProgram(bpffs string) (*ebpf.Program, error) {
	found, err := filepath.Glob(filepath.Join(bpffs, "*", "program"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("find the pinned program under %s: %d found: %w", bpffs, len(found), errors.Join(err, os.ErrNotExist))
	}
	program, err := ebpf.LoadPinnedProgram(found[0], nil)
	if err != nil {
		return nil, fmt.Errorf("open the pinned program: %w", err)
	}
	return program, nil
}

func (b *bench) measureEmpty() (float64, error) {
	costs, err := b.rounds(b.peers.Nothing(), repeats, rounds, nil)
	return traffic.Percentile(costs, 50), err
}

// rounds are the mean costs in ns of each round; before runs ahead of each.
func (b *bench) rounds(program *ebpf.Program, repeat, n int, before func() error) ([]float64, error) {
	var costs []float64
	for range n {
		if before != nil {
			if err := before(); err != nil {
				return nil, err
			}
		}
		_, each, err := program.Benchmark(b.packet, repeat, nil)
		if err != nil {
			return nil, fmt.Errorf("run the program %d times: %w", repeat, err)
		}
		costs = append(costs, float64(each.Nanoseconds()))
	}
	return costs, nil
}

// step is one way of the program.
type step struct {
	what           string
	rate           bandwidth.Rate // 0: the device is of no pod
	repeat, rounds int
	idle           bool // wait before each round until nothing is parked
	// check sees what the round counted.
	check func(c datapath.Counters) bool
}

func steps() []step {
	const runs = repeats * rounds
	return []step{
		{what: "device of no limited pod", repeat: repeats, rounds: rounds},
		{what: "limited, leaves at once", rate: 1e15, repeat: repeats, rounds: rounds,
			check: func(c datapath.Counters) bool { return c.Packets >= runs && c.Dropped == 0 }},
		{what: "limited, stamped", rate: stampedRate, repeat: stampedBatch, rounds: stampedRounds, idle: true,
			check: func(c datapath.Counters) bool { return c.Delayed >= stampedBatch*stampedRounds*9/10 }},
		{what: "limited, over the horizon", rate: 10e6, repeat: repeats, rounds: rounds,
			check: func(c datapath.Counters) bool { return c.Dropped >= runs*9/10 }},
	}
}

func (b *bench) measure(pods int) ([]result.CostRow, error) {
	var rows []result.CostRow
	for _, s := range steps() {
		row, err := b.measureStep(s)
		if err != nil {
			return rows, fmt.Errorf("cost of %q: %w", s.what, err)
		}
		row.Pods = pods
		if s.rate == 0 {
			row.Pods = pods - 1
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (b *bench) measureStep(s step) (result.CostRow, error) {
	row := result.CostRow{What: s.what, Runs: s.repeat * s.rounds}
	if s.rate > 0 {
		if err := b.dp.Set(limit(s.rate)); err != nil {
			return row, fmt.Errorf("set the limit: %w", err)
		}
		defer func() { _ = b.dp.Remove(uid) }()
	}
	var before func() error
	if s.idle {
		before = func() error { time.Sleep(150 * time.Millisecond); return nil }
	}
	costs, err := b.rounds(b.program, s.repeat, s.rounds, before)
	if err != nil {
		return row, err
	}
	if s.check != nil {
		counters, err := b.counters()
		if err != nil {
			return row, err
		}
		if !s.check(counters) {
			return row, fmt.Errorf("the program did not do what was to be measured: %+v", counters)
		}
	}
	row.NsEach = traffic.Percentile(costs, 50) - b.empty
	row.Lowest, row.Highest = traffic.Percentile(costs, 0)-b.empty, traffic.Percentile(costs, 100)-b.empty
	return row, nil
}

const uid = "cost-pod"

func limit(rate bandwidth.Rate) datapath.Limit {
	return datapath.Limit{
		Pod:     datapath.Pod{Namespace: "bench", Name: "cost", UID: uid},
		Devices: []datapath.Device{{Index: loopback}}, Rate: rate, Mode: datapath.ModePacing,
	}
}

func (b *bench) counters() (datapath.Counters, error) {
	states, err := datapath.Read(b.bpffs)
	if err != nil {
		return datapath.Counters{}, fmt.Errorf("read counters: %w", err)
	}
	for _, s := range states {
		if s.Pod.UID == uid {
			return s.Counters, nil
		}
	}
	return datapath.Counters{}, fmt.Errorf("pod %s: %w", uid, os.ErrNotExist)
}

// Machine describes the processors in a line.
func Machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model, count := "", 0
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "processor":
			count++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d × %s", count, model)
}
