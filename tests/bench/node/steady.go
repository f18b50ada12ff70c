// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"
)

// Steady is a node full of limited pods at rest.
type Steady struct {
	Source string `json:"source"`
	// Cold is from the start of the first agent, which finds nothing pinned, to all limits in force.
	ColdMs float64 `json:"first_start_ms"`
	// RestartMs are from the start after a SIGKILL to all adopted.
	RestartMs []float64 `json:"restart_ms"`
	// StartCPU is the processor time until then, of the last restart.
	StartCPUMs float64 `json:"restart_cpu_ms"`
	IdleCPU    float64 `json:"idle_percent_of_one_cpu"`
	IdleFor    float64 `json:"idle_seconds"`
	Memory     Memory  `json:"memory"`
	Threads    float64 `json:"threads"`
	Goroutines float64 `json:"goroutines"`
	FDs        int     `json:"fds"`
}

// steady measures the agent with the pods that are there.
func steady(ctx context.Context, a *agent, p plan, source string) (*Steady, error) {
	s := &Steady{Source: source}
	if err := a.start(); err != nil {
		return nil, err
	}
	cold, err := a.enforced(ctx, p.Pods)
	if err != nil {
		return nil, err
	}
	s.ColdMs = ms(cold)
	for range p.Restarts {
		if err := sleep(ctx, time.Second); err != nil {
			return nil, err
		}
		took, err := a.restart(ctx, p.Pods)
		if err != nil {
			return nil, err
		}
		s.RestartMs = append(s.RestartMs, ms(took))
	}
	cpu, err := a.cpu()
	if err != nil {
		return nil, err
	}
	s.StartCPUMs = ms(cpu)
	say("  %s: first start %.0f ms, restarts %.0f ms; at rest for %v ...", source, s.ColdMs, s.RestartMs, p.Settle+p.Idle)
	if err := sleep(ctx, p.Settle); err != nil {
		return nil, err
	}
	return s, s.rest(ctx, a, p)
}

// rest measures the agent while nothing happens, its resyncs included.
func (s *Steady) rest(ctx context.Context, a *agent, p plan) error {
	before, err := a.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleep(ctx, p.Idle); err != nil {
		return err
	}
	after, err := a.cpu()
	if err != nil {
		return err
	}
	s.IdleFor = time.Since(began).Seconds()
	s.IdleCPU = 100 * (after - before).Seconds() / s.IdleFor
	if s.Memory, err = a.memory(); err != nil {
		return err
	}
	if s.FDs, err = a.fds(); err != nil {
		return err
	}
	text, err := a.metrics()
	if err != nil {
		return err
	}
	for name, to := range map[string]*float64{"go_goroutines": &s.Goroutines, "go_threads": &s.Threads} {
		if *to, err = gauge(text, name); err != nil {
			return err
		}
	}
	say("  %s: %.3f %% of a processor, %.1f MiB resident (peak %.1f)", s.Source, s.IdleCPU, mib(s.Memory.Resident), mib(s.Memory.Peak))
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("interrupted: %w", ctx.Err())
	case <-time.After(d):
		return nil
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
