// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// warmUp is how many creates go before each measurement: connections, compiled expressions.
const warmUp = 20

// rounds measures every variant and kind of pod once in each round; the order changes from round to round.
func rounds(ctx context.Context, s *adminSwitch, p plan) ([]*Series, error) {
	clients, err := kubernetes.NewForConfig(s.Config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	all := map[string]*Series{}
	var out []*Series
	for _, k := range podKinds {
		for _, v := range variants {
			series := &Series{Pod: k.Name, Variant: v}
			all[k.Name+v] = series
			out = append(out, series)
		}
	}
	for round := range p.Rounds {
		for i := range variants {
			v := variants[(i+round)%len(variants)]
			if err := s.to(ctx, v); err != nil {
				return nil, err
			}
			for _, k := range podKinds {
				one, err := creates(ctx, clients, k, v, 1, p.Single)
				if err != nil {
					return nil, err
				}
				many, err := creates(ctx, clients, k, v, p.Clients, p.Many)
				if err != nil {
					return nil, err
				}
				all[k.Name+v].add(one, many)
				say("round %d of %d, %-8s %-12s 1 client: median %.2f ms; %d clients: %.0f creates/s",
					round+1, p.Rounds, v, k.Name, one.quantile(0.5), p.Clients, many.rate())
			}
		}
	}
	return out, nil
}

// sample is one measurement.
type sample struct {
	latencies []float64 // ms
	took      time.Duration
}

// creates has the clients create so many pods together. Every answer is checked.
func creates(ctx context.Context, clients kubernetes.Interface, k podKind, variant string, workers, total int) (sample, error) {
	pods := clients.CoreV1().Pods(k.namespace)
	one := func() (time.Duration, error) {
		p := k.pod()
		began := time.Now()
		created, err := pods.Create(ctx, p, metav1.CreateOptions{})
		took := time.Since(began)
		if err == nil {
			err = k.check(created, variant)
		}
		return took, err
	}
	for range warmUp {
		if _, err := one(); err != nil {
			return sample{}, fmt.Errorf("create with %s: %w", variant, err)
		}
	}
	var left atomic.Int64
	left.Store(int64(total))
	latencies, errs := make([][]float64, workers), make([]error, workers)
	var wg sync.WaitGroup
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 && errs[w] == nil {
				var took time.Duration
				took, errs[w] = one()
				latencies[w] = append(latencies[w], float64(took)/float64(time.Millisecond))
			}
		})
	}
	wg.Wait()
	out := sample{took: time.Since(began)}
	for _, l := range latencies {
		out.latencies = append(out.latencies, l...)
	}
	if err := errors.Join(errs...); err != nil {
		return sample{}, fmt.Errorf("create with %s: %w", variant, err)
	}
	return out, deleteAll(ctx, clients, k.namespace)
}

// deleteAll deletes the pods: those made without kubepace would keep it busy with stamping them once it runs and is measured.
func deleteAll(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	now := int64(0)
	err := clients.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("delete pods: %w", err)
	}
	// What follows a deletion in caches and in etcd is over then.
	time.Sleep(300 * time.Millisecond)
	return nil
}
