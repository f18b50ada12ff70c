// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what became of running pods. It outlives the terms of a leader.
type Metrics struct {
	pods          *prometheus.CounterVec
	uncountedPods *prometheus.GaugeVec
	uncountedBits *prometheus.GaugeVec
	problems      *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	pods := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kubepace_restamp_pods_total",
		Help: "Running pods that a changed policy reached, by outcome: lowered, raised, limited, lifted, rewritten; " +
			"refused, recreate, held (the pod keeps what it has, an event says why); unanswered (the webhook did not see the request: tried again).",
	}, []string{"outcome"})
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"namespace"})
	}
	m := &Metrics{
		pods: pods,
		uncountedPods: gauge("kubepace_uncounted_pods",
			"Running pods of a namespace that no ResourceQuota counts, though one counts egress bandwidth: they are older than it."),
		problems: gauge("kubepace_policy_problems",
			"Settings of a namespace (labels, LimitRanges, ResourceQuotas) that cannot be applied; events EgressPolicyProblem say which."),
		uncountedBits: gauge("kubepace_uncounted_bits_per_second", "The egress limits of these pods together. Pods without a limit add nothing."),
	}
	for _, c := range []prometheus.Collector{m.pods, m.uncountedPods, m.uncountedBits, m.problems} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// uncounted shows a namespace's pods that no quota counts; none takes the namespace away. It is a no-op on nil.
func (m *Metrics) uncounted(namespace string, u uncounted) {
	switch {
	case m == nil:
	case u.pods == 0:
		m.uncountedPods.DeleteLabelValues(namespace)
		m.uncountedBits.DeleteLabelValues(namespace)
	default:
		m.uncountedPods.WithLabelValues(namespace).Set(float64(u.pods))
		m.uncountedBits.WithLabelValues(namespace).Set(float64(u.bits))
	}
}

// policyProblems shows how many settings of a namespace cannot be applied; none takes the namespace away. It is a no-op on
// nil.
func (m *Metrics) policyProblems(namespace string, n int) {
	switch {
	case m == nil:
	case n == 0:
		m.problems.DeleteLabelValues(namespace)
	default:
		m.problems.WithLabelValues(namespace).Set(float64(n))
	}
}

// count is a no-op on nil.
func (m *Metrics) count(outcome string) {
	if m != nil {
		m.pods.WithLabelValues(outcome).Inc()
	}
}
