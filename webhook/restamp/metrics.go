// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// newMetrics registers the counter of what became of running pods.
func newMetrics(registry prometheus.Registerer) (*prometheus.CounterVec, error) {
	pods := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kubepace_restamp_pods_total",
		Help: "Running pods that a changed policy reached, by outcome: lowered, raised, limited, lifted, rewritten; " +
			"refused, recreate, held (the pod keeps what it has, an event says why); unanswered (the webhook did not see the request: tried again).",
	}, []string{"outcome"})
	if err := registry.Register(pods); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return pods, nil
}
