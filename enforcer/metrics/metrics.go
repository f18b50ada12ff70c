// SPDX-License-Identifier: Apache-2.0

// Package metrics shows Prometheus what the enforcer does: every pod's counters, read from the kernel at each scrape,
// and the state of the node and of the loop. How many pods have series of their own is bounded; see chooser.
package metrics

import (
	"cmp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/report"
)

const (
	// DefaultPods is more than a node has pods by its kubelet's default (110), and what large nodes are set to.
	DefaultPods = 250
	// Other stands for namespace and pod of the series that sums what has none of its own. No pod has that name.
	Other = "(other)"
)

// Options for New.
type Options struct {
	States  func() ([]datapath.State, error) // the kernel's, at each scrape
	Status  func() enforcer.Status           // the loop's
	Repairs func() map[datapath.Cause]uint64 // the loop's
	Version string
	Node    string
	Pods    int // with series of their own; 0 for none
}

// Collector is a prometheus.Collector. It may be collected by several scrapes at once.
type Collector struct {
	opts       Options
	passes     prometheus.Histogram
	readErrors prometheus.Counter

	mu     sync.Mutex
	chosen *chooser
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector that is not registered yet.
func New(o Options) *Collector {
	return &Collector{
		opts: o, chosen: newChooser(o.Pods),
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kubepace_enforcer_pass_duration_seconds",
			Help:    "How long the loop took to compare all pods of the node with the kernel and to change the difference.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3},
		}),
		readErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kubepace_enforcer_kernel_read_errors_total",
			Help: "Scrapes that could not read the kernel's state and so have no figures of pods.",
		}),
	}
}

// Passed counts one pass of the loop.
func (c *Collector) Passed(took time.Duration) { c.passes.Observe(took.Seconds()) }

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
	c.passes.Describe(ch)
	c.readErrors.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := sink{ch}
	status := c.opts.Status()
	states, err := c.opts.States()
	if err != nil {
		c.readErrors.Inc()
	} else {
		list := readable(report.Rows(states, status))
		named, rest := c.chosen.choose(list)
		for _, r := range named {
			out.pod(r)
		}
		if len(rest) > 0 || c.chosen.sum != (datapath.Counters{}) {
			out.other(rest, c.chosen.sum)
		}
		out.gauge(podsSummed, float64(len(rest)))
		out.counts(list)
	}
	out.gauge(buildInfo, 1, c.opts.Version, c.opts.Node)
	out.node(status)
	repairs := c.opts.Repairs()
	for _, cause := range []datapath.Cause{datapath.CauseRemoved, datapath.CauseHidden} {
		out.counter(hookRepairs, repairs[cause], string(cause))
	}
	c.passes.Collect(ch)
	c.readErrors.Collect(ch)
}

// readable lets no name through that is no UTF-8: it would fail the whole scrape.
func readable(list []report.Row) []report.Row {
	for i := range list {
		list[i].Namespace, list[i].Name = strings.ToValidUTF8(list[i].Namespace, "?"), strings.ToValidUTF8(list[i].Name, "?")
	}
	return list
}

// sink sends metrics.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.send(d, prometheus.GaugeValue, value, labels)
}

func (s sink) counter(d *prometheus.Desc, value uint64, labels ...string) {
	s.send(d, prometheus.CounterValue, float64(value), labels)
}

func (s sink) send(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels []string) {
	s.ch <- prometheus.MustNewConstMetric(d, kind, value, labels...)
}

// pod that has series of its own. What the kernel does not hold has no counters.
func (s sink) pod(r report.Row) {
	labels := func(more ...string) []string { return append([]string{r.Namespace, r.Name}, more...) }
	s.gauge(podEnforced, number(r.Enforced), labels()...)
	if !r.Enforced {
		s.gauge(podNotEnforced, 1, labels(string(code(r)))...)
	}
	if r.LimitBPS > 0 {
		s.gauge(podLimit, float64(r.LimitBPS), labels()...)
	}
	if r.Held {
		s.gauge(podBacklog, r.BacklogMs/1000, labels()...)
		s.counters(r.Counters, r.Namespace, r.Name)
	}
}

func (s sink) other(rest []report.Row, sum datapath.Counters) {
	var limits int64
	for _, r := range rest {
		limits += r.LimitBPS
	}
	s.gauge(podLimit, float64(limits), Other, Other)
	s.counters(sum, Other, Other)
}

func (s sink) counters(c datapath.Counters, namespace, pod string) {
	for d, value := range map[*prometheus.Desc]uint64{
		podBytes: c.Bytes, podPackets: c.Packets, podDelayed: c.Delayed, podSparse: c.Sparse, podMarked: c.Marked,
		podDropped: c.Dropped, podDroppedBytes: c.DroppedBytes,
	} {
		s.counter(d, value, namespace, pod)
	}
}

// counts of all pods, by how their limits stand.
func (s sink) counts(list []report.Row) {
	enforced, reasons := 0, map[enforcer.Code]int{}
	for _, r := range list {
		if r.Enforced {
			enforced++
		} else {
			reasons[code(r)]++
		}
	}
	s.gauge(pods, float64(enforced), "true", "")
	for reason, n := range reasons {
		s.gauge(pods, float64(n), "false", string(reason))
	}
	if len(reasons) == 0 {
		s.gauge(pods, 0, "false", "")
	}
}

// code of a pod that is not enforced. It has one of ours where no agent has said any.
func code(r report.Row) enforcer.Code { return cmp.Or(r.Code, enforcer.CodeFailed) }

func (s sink) node(status enforcer.Status) {
	s.gauge(pacing, number(status.Mode == datapath.ModePacing.String()))
	s.gauge(synced, number(status.Synced))
	s.gauge(problems, float64(len(status.Problems)))
	paced := 0
	for _, d := range status.Exits {
		if d.Paced {
			paced++
		}
	}
	s.gauge(exits, float64(paced), "true")
	s.gauge(exits, float64(len(status.Exits)-paced), "false")
	s.gauge(podDevices, float64(len(status.Veths)))
}

func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
