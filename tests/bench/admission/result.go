// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"

	"github.com/kubepace/kubepace/tests/bench/figure"
)

// Result is admission.json.
type Result struct {
	Plan     plan      `json:"plan"`
	Kernel   string    `json:"kernel"`
	CPUs     int       `json:"cpus"`
	Started  string    `json:"started"`
	Seconds  float64   `json:"took_seconds"`
	Series   []*Series `json:"series"`
	Handlers []Handler `json:"handlers"`
	Memory   Memory    `json:"memory"`
}

// Series is one variant with one kind of pod; a value for each round. Latencies are in ms.
type Series struct {
	Pod       string    `json:"pod"`
	Variant   string    `json:"variant"`
	OneP50    []float64 `json:"one_client_p50_ms"`
	OneP99    []float64 `json:"one_client_p99_ms"`
	OneRate   []float64 `json:"one_client_creates_per_second"`
	ManyP50   []float64 `json:"many_clients_p50_ms"`
	ManyP99   []float64 `json:"many_clients_p99_ms"`
	ManyRates []float64 `json:"many_clients_creates_per_second"`
}

func (s *Series) add(one, many sample) {
	s.OneP50, s.OneP99 = append(s.OneP50, one.quantile(0.5)), append(s.OneP99, one.quantile(0.99))
	s.ManyP50, s.ManyP99 = append(s.ManyP50, many.quantile(0.5)), append(s.ManyP99, many.quantile(0.99))
	s.OneRate, s.ManyRates = append(s.OneRate, one.rate()), append(s.ManyRates, many.rate())
}

func (s sample) rate() float64 { return float64(len(s.latencies)) / s.took.Seconds() }

// quantile is the nearest rank's value.
func (s sample) quantile(q float64) float64 { return quantile(s.latencies, q) }

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// added is the median over the rounds of what a variant's value is above that of none in the same round.
func added(of, base []float64) float64 {
	var out []float64
	for i := range min(len(of), len(base)) {
		out = append(out, of[i]-base[i])
	}
	return median(out)
}

func (r *Result) series(pod, variant string) *Series {
	for _, s := range r.Series {
		if s.Pod == pod && s.Variant == variant {
			return s
		}
	}
	return &Series{Pod: pod, Variant: variant}
}

// picture draws the latencies of one client.
func (r *Result) picture() figure.Bars {
	bars := figure.Bars{
		Title:    "One pod create, one client",
		Subtitle: "kube-apiserver and etcd on the same machine; medians over rounds that take turns",
		Unit:     "ms", Series: variants,
	}
	for _, k := range podKinds {
		for _, q := range []struct {
			name string
			of   func(*Series) []float64
		}{{"p50", func(s *Series) []float64 { return s.OneP50 }}, {"p99", func(s *Series) []float64 { return s.OneP99 }}} {
			g := figure.Group{Name: k.Name + " pod, " + q.name}
			for _, v := range variants {
				g.Values = append(g.Values, median(q.of(r.series(k.Name, v))))
			}
			bars.Groups = append(bars.Groups, g)
		}
	}
	return bars
}
