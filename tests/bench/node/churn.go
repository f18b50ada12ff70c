// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"sync"
	"time"
)

// Churn is pods that come and go on a node that is full of others.
type Churn struct {
	Pods       int       `json:"pods"`
	Seconds    float64   `json:"seconds"`
	Standing   int       `json:"standing_pods"`
	CPU        float64   `json:"percent_of_one_cpu"`
	EnforceMs  []float64 `json:"cni_add_to_enforced_ms"` // p50, p90, p99, worst
	Unenforced int       `json:"ended_without_limit"`
	Before     *Held     `json:"before"`
	After      *Held     `json:"after"`
	Resident   []float64 `json:"resident_mib"` // over the time, at equal distances
	Leaks      []string  `json:"leaks"`
}

// churn is the machinery.
type churn struct {
	w      *world
	plane  *plane
	layout string
	life   time.Duration

	mu         sync.Mutex
	latencies  []float64
	unenforced int
	errs       []error
}

// run starts so many pods a second for the plan's time, and counts what is held before and when all is settled.
func (r *Result) churn(ctx context.Context, a *agent, p *plane, standing int) (err error) {
	out := &Churn{Standing: standing, Leaks: []string{}}
	c := &churn{w: a.w, plane: p, life: r.Plan.Lifetime}
	if c.layout, err = a.w.layout(); err != nil {
		return err
	}
	// Once before it counts: caches, connections and the runtime's threads reach the size that they stay at.
	say("  churn of %d pods/s: warming up ...", r.Plan.PerSecond)
	if _, err := c.phase(ctx, 1000, r.Plan.PerSecond, 5*time.Second, func() {}); err != nil {
		return err
	}
	if err := sleep(ctx, r.Plan.Settle); err != nil {
		return err
	}
	if out.Before, err = a.held(ctx); err != nil {
		return err
	}
	c.latencies, c.unenforced = nil, 0
	say("  churn of %d pods/s for %v ...", r.Plan.PerSecond, r.Plan.Churn)
	cpu, err := a.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	sample := func() {
		if m, err := a.memory(); err == nil {
			out.Resident = append(out.Resident, math.Round(10*mib(m.Resident))/10)
		}
	}
	if out.Pods, err = c.phase(ctx, 1100, r.Plan.PerSecond, r.Plan.Churn, sample); err != nil {
		return err
	}
	out.Seconds = time.Since(began).Seconds()
	after, err := a.cpu()
	if err != nil {
		return err
	}
	out.CPU = 100 * (after - cpu).Seconds() / out.Seconds
	out.Unenforced = c.unenforced
	out.EnforceMs = quantiles(c.latencies)
	if err := sleep(ctx, r.Plan.Settle); err != nil {
		return err
	}
	if out.After, err = a.held(ctx); err != nil {
		return err
	}
	out.Leaks = append(out.Leaks, out.After.leaks(out.Before)...)
	r.Churn = out
	say("  churn: %d pods, %.1f %% of a processor, CNI ADD to enforced p50 %.0f ms, p99 %.0f ms, leaks %v", out.Pods, out.CPU, out.EnforceMs[0], out.EnforceMs[2], out.Leaks)
	return nil
}

func quantiles(values []float64) (list []float64) {
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		list = append(list, quantile(values, q))
	}
	return list
}

// phase lets pods come for a time, calls sample twenty times meanwhile, and waits until the last pod is gone.
func (c *churn) phase(ctx context.Context, first, perSecond int, d time.Duration, sample func()) (int, error) {
	total := int(d.Seconds() * float64(perSecond))
	every := time.Second / time.Duration(perSecond)
	var living sync.WaitGroup
	began := time.Now()
	for i := range total {
		if err := sleep(ctx, time.Until(began.Add(time.Duration(i)*every))); err != nil {
			break
		}
		// Numbers are used again: so are names, addresses and, as the kernel pleases, ifindexes.
		living.Go(func() { c.one(ctx, first+i%(100*perSecond)) })
		if i%max(1, total/20) == 0 {
			sample()
		}
	}
	living.Wait()
	return total, errors.Join(append(c.errs, ctx.Err())...)
}

// one is the life of a pod.
func (c *churn) one(ctx context.Context, i int) {
	if err := c.live(ctx, i); err != nil {
		c.mu.Lock()
		c.errs = append(c.errs, err)
		c.mu.Unlock()
	}
}

func (c *churn) live(ctx context.Context, i int) (err error) {
	bound, err := c.plane.bindPod(ctx, podName(i), nodeName)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.plane.deletePod(context.WithoutCancel(ctx), podName(i))) }()
	p, err := c.w.addPod(i)
	if err != nil {
		return err
	}
	defer os.Remove(c.w.resultFile(p)) // after the network, as libcni does
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := c.w.result(p, string(bound.UID)); err != nil {
		return err
	}
	added := time.Now()
	reported := make(chan error, 1)
	go func() { reported <- c.plane.report(ctx, bound, p.addr.String()) }()
	c.watch(ctx, p, added)
	return <-reported
}

// watch waits for the end of a pod's life and notes when its limit came.
func (c *churn) watch(ctx context.Context, p *pod, added time.Time) {
	enforced := false
	for end := added.Add(c.life); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if enforced || !pinned(c.layout, p.index) {
			continue
		}
		enforced = true
		c.mu.Lock()
		c.latencies = append(c.latencies, ms(time.Since(added)))
		c.mu.Unlock()
	}
	if !enforced {
		c.mu.Lock()
		c.unenforced++
		c.mu.Unlock()
	}
}

// quantile is the nearest rank's value.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}
