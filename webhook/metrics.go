// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// The two halves of admission, as metrics name them.
const (
	halfMutate   = "mutate"
	halfValidate = "validate"
)

// Metrics counts what admission decided. Latency is counted per path by controller-runtime.
type Metrics struct {
	decisions *prometheus.CounterVec
	failures  *prometheus.CounterVec
	capped    *prometheus.CounterVec
}

// NewMetrics registers the counters.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubepace_admission_decisions_total",
			Help: "Decisions about pods by half (mutate, validate), reason and the namespace's mode. Dry-run requests do not count.",
		}, []string{"half", "reason", "mode"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubepace_admission_failures_total",
			Help: "Reviews that could not be judged and were left to failurePolicy, by path.",
		}, []string{"path"}),
		capped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubepace_admission_capped_bits_per_second_total",
			Help: "What pods asked for above their maximum, in bits/s, summed over the pods that were capped. Dry-run requests do not count; those of namespaces in dry-run mode do not either.",
		}, []string{"namespace"}),
	}
	for _, c := range []prometheus.Collector{m.decisions, m.failures, m.capped} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// count is a no-op on nil. A request that the client sends as a dry run leaves no pod behind, so it does not count.
func (m *Metrics) count(dryRun bool, namespace, half string, d policy.Decision) {
	if m == nil || dryRun {
		return
	}
	m.decisions.WithLabelValues(half, string(d.Reason), d.Mode).Inc()
	if half == halfMutate && len(d.Changes) > 0 && d.Source == bandwidth.SourceCapped {
		if asked, err := bandwidth.Parse(d.Requested); err == nil {
			m.capped.WithLabelValues(namespace).Add(float64(asked - d.Limit))
		}
	}
}

func (m *Metrics) failed(path string) {
	if m != nil {
		m.failures.WithLabelValues(path).Inc()
	}
}
