// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/x509"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics tells what this replica serves; nil counts nothing.
type Metrics struct {
	notAfter prometheus.Gauge
	loads    prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		notAfter: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kubepace_webhook_certificate_not_after_timestamp_seconds",
			Help: "When the certificate that this replica serves expires, in seconds since 1970.",
		}),
		loads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kubepace_webhook_certificate_loads_total",
			Help: "Certificates that this replica began to serve.",
		}),
	}
	for _, c := range []prometheus.Collector{m.notAfter, m.loads} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) loaded(c *x509.Certificate) {
	if m == nil || c == nil {
		return
	}
	m.notAfter.Set(float64(c.NotAfter.Unix()))
	m.loads.Inc()
}
