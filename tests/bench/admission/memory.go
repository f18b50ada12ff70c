// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Memory of the webhook's process, some seconds after it became ready.
type Memory struct {
	EmptyRSS  float64 `json:"empty_cluster_rss_bytes"`
	EmptyHeap float64 `json:"empty_cluster_heap_bytes"`
	LargeRSS  float64 `json:"large_cluster_rss_bytes"`
	LargeHeap float64 `json:"large_cluster_heap_bytes"`
}

// memory starts the webhook on the empty cluster, fills the cluster, and starts it again.
func memory(ctx context.Context, s *adminSwitch, p plan) (m Memory, err error) {
	say("memory, and %d namespaces with %d limit ranges ...", p.Namespaces, p.Ranges)
	if m.EmptyRSS, m.EmptyHeap, err = s.settle(ctx); err != nil {
		return Memory{}, err
	}
	if err := s.run(ctx, false); err != nil {
		return Memory{}, err
	}
	if err := s.fill(ctx, p); err != nil {
		return Memory{}, err
	}
	m.LargeRSS, m.LargeHeap, err = s.settle(ctx)
	return m, err
}

// settle starts the webhook and lets it come to rest.
func (s *adminSwitch) settle(ctx context.Context) (rss, heap float64, err error) {
	if err := s.run(ctx, true); err != nil {
		return 0, 0, err
	}
	time.Sleep(atRest)
	text, err := s.webhook.Metrics()
	if err != nil {
		return 0, 0, fmt.Errorf("read metrics: %w", err)
	}
	if rss, err = gauge(text, "process_resident_memory_bytes"); err != nil {
		return 0, 0, err
	}
	heap, err = gauge(text, "go_memstats_heap_inuse_bytes")
	return rss, heap, err
}

// gauge is the value of a metric without labels.
func gauge(text, name string) (float64, error) {
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return strconv.ParseFloat(match[1], 64)
}

// fill makes namespaces of different teams, one in ten with a limit range.
func (s *adminSwitch) fill(ctx context.Context, p plan) error {
	const workers = 16
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < p.Namespaces && errs[w] == nil; i += workers {
				errs[w] = s.fillOne(ctx, i, i < p.Ranges)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *adminSwitch) fillOne(ctx context.Context, i int, ranged bool) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:        fmt.Sprintf("team-%05d", i),
		Labels:      map[string]string{"egress.kubepace.io/max": "1G", "team": fmt.Sprintf("team-%d", i/10), "stage": "production"},
		Annotations: map[string]string{"description": strings.Repeat("what this namespace is for ", 8)},
	}}
	if err := s.Client.Create(ctx, ns); err != nil {
		return fmt.Errorf("create namespace %s: %w", ns.Name, err)
	}
	if !ranged {
		return nil
	}
	lr := &corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{Name: "egress", Namespace: ns.Name},
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypePod, Max: corev1.ResourceList{"kubepace.io/egress-bandwidth": resource.MustParse("500M")},
		}}},
	}
	if err := s.Client.Create(ctx, lr); err != nil {
		return fmt.Errorf("create limit range in %s: %w", ns.Name, err)
	}
	return nil
}
