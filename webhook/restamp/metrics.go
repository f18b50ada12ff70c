// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what became of running pods. It outlives the terms of a leader.
type Metrics struct{ pods *prometheus.CounterVec }

// NewMetrics registers the counter.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	pods := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kubepace_restamp_pods_total",
		Help: "Running pods that a changed policy reached, by outcome: lowered, raised, limited, lifted, rewritten; " +
			"refused, recreate, held (the pod keeps what it has, an event says why); unanswered (the webhook did not see the request: tried again).",
	}, []string{"outcome"})
	if err := registry.Register(pods); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return &Metrics{pods}, nil
}

// count is a no-op on nil.
func (m *Metrics) count(outcome string) {
	if m != nil {
		m.pods.WithLabelValues(outcome).Inc()
	}
}
