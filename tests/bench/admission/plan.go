// SPDX-License-Identifier: Apache-2.0

package main

// plan says how much is measured.
type plan struct {
	Mode       string `json:"mode"`
	Rounds     int    `json:"rounds"`
	Single     int    `json:"creates_by_one_client"`  // in each round, variant and kind of pod
	Many       int    `json:"creates_by_all_clients"` // the same
	Clients    int    `json:"clients"`
	Namespaces int    `json:"namespaces"`
	Ranges     int    `json:"limit_ranges"`
	BenchTime  string `json:"handler_bench_time"`
}

var (
	full  = plan{"full", 7, 250, 800, 16, 10_000, 1_000, "2s"}
	brief = plan{"quick", 3, 100, 400, 16, 10_000, 1_000, "1s"}
)

// variants are what pods are created with, in the order of the tables.
var variants = []string{none, bare, cel, kubepace}

const (
	none     = "none"
	bare     = "empty webhooks"
	cel      = "CEL"
	kubepace = "kubepace"
)

// podKind is a pod in a namespace.
type podKind struct {
	Name      string
	namespace string
	labels    map[string]string // of the namespace
	asks      string            // annotation; empty for none
	gets      map[string]string // annotation after admission by each variant
	target    float64           // most that kubepace may add to the median, in ms
}

// handlerTarget is the least that the handler is to decide, in reviews per second and core.
const handlerTarget = 5000

var podKinds = []podKind{
	{
		Name: "unremarkable", namespace: "plain", target: 1.5,
		gets: map[string]string{none: "", bare: "", cel: "", kubepace: ""},
	},
	{
		Name: "capped", namespace: "bounded", asks: "1G", target: 2.5,
		labels: map[string]string{"egress.kubepace.io/max": "50M", "egress.kubepace.io/default": "25M"},
		gets:   map[string]string{none: "1G", bare: "50M", cel: "50M", kubepace: "50M"},
	},
}
