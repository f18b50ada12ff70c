// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// serveHTTP serves until ctx ends. The address 0 serves nothing.
func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	if address == "0" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	if err := <-stopped; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}

// serveHealth: live while the loop turns, ready while all of this node's pods are known and their limits can be kept.
func serveHealth(ctx context.Context, address string, e *enforcer.Enforcer) error {
	mux := http.NewServeMux()
	answer := func(path string, check func() error) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	answer("/healthz", func() error {
		if !e.Alive() {
			return errStill
		}
		return nil
	})
	answer("/readyz", e.Readiness)
	return serveHTTP(ctx, address, mux)
}

var errStill = errors.New("the loop stands still")

func serveMetrics(ctx context.Context, address string, e *enforcer.Enforcer) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), podCounts{e})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return serveHTTP(ctx, address, mux)
}

// podCounts is the node in a few numbers; what concerns single pods is in "list".
type podCounts struct{ e *enforcer.Enforcer }

var (
	podsDesc   = prometheus.NewDesc("kubepace_enforcer_pods", "Pods on this node that want an egress limit.", []string{"enforced"}, nil)
	modeDesc   = prometheus.NewDesc("kubepace_enforcer_pacing", "1 where limits are kept by pacing, 0 where by policing.", nil, nil)
	repairDesc = prometheus.NewDesc("kubepace_enforcer_repairs_total", "Times that somebody took a pod's limit off its device (removed) or went before it (hidden), and it was put right.", []string{"cause"}, nil)
	syncedDesc = prometheus.NewDesc("kubepace_enforcer_synced", "1 while all pods of this node are known.", nil, nil)
)

func (c podCounts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{podsDesc, modeDesc, repairDesc, syncedDesc} {
		ch <- d
	}
}

func (c podCounts) Collect(ch chan<- prometheus.Metric) {
	s := c.e.Status()
	enforced := 0
	for _, v := range s.Pods {
		if v.Enforced {
			enforced++
		}
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(podsDesc, float64(enforced), "true")
	gauge(podsDesc, float64(len(s.Pods)-enforced), "false")
	gauge(modeDesc, number(s.Mode == "pacing"))
	gauge(syncedDesc, number(s.Synced))
	repairs := c.e.Repairs()
	for _, cause := range []datapath.Cause{datapath.CauseRemoved, datapath.CauseHidden} {
		ch <- prometheus.MustNewConstMetric(repairDesc, prometheus.CounterValue, float64(repairs[cause]), string(cause))
	}
}

func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
