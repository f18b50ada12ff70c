// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func state(namespace, name, uid string, bytes uint64) datapath.State {
	return datapath.State{
		Limit: datapath.Limit{Pod: datapath.Pod{Namespace: namespace, Name: name, UID: uid}, Rate: bandwidth.MustParse("10M"), Mode: datapath.ModePacing,
			Devices: []datapath.Device{{Index: 5, Name: "veth5", Hook: datapath.HookTCX}}},
		Counters: datapath.Counters{Bytes: bytes, Packets: bytes / 100, Delayed: 7, Sparse: 6, Marked: 5, Dropped: 4, DroppedBytes: 3},
		Backlog:  12 * time.Millisecond,
	}
}

func numbered(n int) []datapath.State {
	var states []datapath.State
	for i := range n {
		states = append(states, state("team", fmt.Sprintf("pod-%d", i), fmt.Sprintf("uid-%d", i), uint64(1000*(i+1))))
	}
	return states
}

func noRepairs() map[datapath.Cause]uint64 { return nil }

func collector(places int, states *[]datapath.State, status enforcer.Status) *Collector {
	return New(Options{
		States:  func() ([]datapath.State, error) { return *states, nil },
		Repairs: noRepairs, Status: func() enforcer.Status { return status }, Version: "v1", Node: "n1", Pods: places,
	})
}

func gather(t testing.TB, c prometheus.Collector) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// series are "name label=value ..." with their values, without the histogram.
func series(t testing.TB, c prometheus.Collector) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, f := range gather(t, c) {
		for _, m := range f.Metric {
			key := strings.TrimPrefix(f.GetName(), "kubepace_enforcer_")
			for _, l := range m.Label {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			if m.Histogram == nil {
				all[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return all
}

func node() enforcer.Status {
	return enforcer.Status{
		Mode: "pacing", Synced: true, Problems: []string{"one"},
		Exits: []qdisc.Device{{Name: "eth0", Paced: true}, {Name: "eth1"}}, Veths: []qdisc.Device{{Name: "veth9"}},
		Pods: []enforcer.Verdict{
			{Pod: datapath.Pod{Namespace: "team", Name: "web", UID: "u1"}, Enforced: true, Code: enforcer.CodePacing},
			{Pod: datapath.Pod{Namespace: "team", Name: "host", UID: "u2"}, Limit: bandwidth.MustParse("2G"), Code: enforcer.CodeHostNetwork, Reason: "the pod shares the node's network namespace"},
		},
	}
}

func TestSeries(t *testing.T) {
	states := []datapath.State{state("team", "web", "u1", 5000)}
	c := collector(10, &states, node())
	c.opts.Repairs = func() map[datapath.Cause]uint64 { return map[datapath.Cause]uint64{datapath.CauseHidden: 2} }
	got := series(t, c)
	want := map[string]float64{
		"build_info node=n1 version=v1": 1, "pacing": 1, "synced": 1, "problems": 1, "pods_summed": 0, "repairs_total cause=hidden": 2, "repairs_total cause=removed": 0, "kernel_read_errors_total": 0,
		"exit_devices paced=true": 1, "exit_devices paced=false": 1, "pod_devices_without_fq": 1,
		"pods enforced=true reason=": 1, "pods enforced=false reason=HostNetwork": 1,
		"pod_limit_bits_per_second namespace=team pod=web": 10e6, "pod_limit_bits_per_second namespace=team pod=host": 2e9,
		"pod_enforced namespace=team pod=web": 1, "pod_enforced namespace=team pod=host": 0,
		"pod_not_enforced_info namespace=team pod=host reason=HostNetwork": 1,
		"pod_backlog_seconds namespace=team pod=web":                       0.012,
		"pod_bytes_total namespace=team pod=web":                           5000, "pod_packets_total namespace=team pod=web": 50,
		"pod_delayed_packets_total namespace=team pod=web": 7, "pod_sparse_packets_total namespace=team pod=web": 6,
		"pod_marked_packets_total namespace=team pod=web": 5, "pod_dropped_packets_total namespace=team pod=web": 4,
		"pod_dropped_bytes_total namespace=team pod=web": 3,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLint(t *testing.T) {
	states := numbered(3)
	c := collector(1, &states, node())
	c.Passed(time.Millisecond)
	problems, err := promlint.NewWithMetricFamilies(gather(t, c)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		// Limits are bits per second everywhere: in annotations, flags and documents, and so here.
		if strings.HasSuffix(p.Metric, "_bits_per_second") && p.Text == `use base unit "bytes" instead of "bits"` {
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// However many pods there are, at most so many names are.
func TestBounded(t *testing.T) {
	for _, test := range []struct{ places, pods, names int }{{0, 300, 1}, {1, 300, 2}, {250, 250, 250}, {250, 251, 251}, {250, 1000, 251}} {
		states := numbered(test.pods)
		names := map[string]bool{}
		for key := range series(t, collector(test.places, &states, enforcer.Status{})) {
			if name, ok := strings.CutPrefix(key, "pod_limit_bits_per_second "); ok {
				names[name] = true
			}
		}
		if len(names) != test.names {
			t.Errorf("%d places, %d pods: %d names; want %d", test.places, test.pods, len(names), test.names)
		}
	}
}

// Those that nothing holds have names first, then those that sent most; a place is kept while its pod is there.
func TestChosen(t *testing.T) {
	states := numbered(5)
	c := collector(2, &states, enforcer.Status{Pods: []enforcer.Verdict{{Pod: datapath.Pod{Namespace: "team", Name: "lost", UID: "lost"}, Code: enforcer.CodeHostNetwork}}})
	named := func() string {
		var names []string
		all := series(t, c)
		for _, name := range []string{"lost", "pod-0", "pod-1", "pod-2", "pod-3", "pod-4", "new"} {
			if _, ok := all["pod_enforced namespace=team pod="+name]; ok {
				names = append(names, name)
			}
		}
		return strings.Join(names, " ")
	}
	if got, want := named(), "lost pod-4"; got != want {
		t.Errorf("named are %s; want %s", got, want)
	}
	states[0].Counters.Bytes = 1e9
	if got, want := named(), "lost pod-4"; got != want {
		t.Errorf("another one sent more: named are %s; want %s still", got, want)
	}
	states = states[:4]
	if got, want := named(), "lost pod-0"; got != want {
		t.Errorf("pod-4 has gone: named are %s; want %s", got, want)
	}
}

// Pods come, send, go, come back under their old names, and change places with the sum: no counter of a series goes
// back while its pod lives, and the sum never does. What was sent is counted once: all series together never gained
// more than the kernel's counters did, since the first look.
func TestCountersNeverGoBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		states := numbered(6)
		c := collector(rng.IntN(5), &states, enforcer.Status{})
		var sent, sum float64
		uids, before, next := map[string]string{}, map[string]float64{}, 100
		for look := range 40 {
			now := map[string]float64{}
			all := series(t, c)
			for key, value := range all {
				if name, ok := strings.CutPrefix(key, "pod_bytes_total "); ok {
					now[name] = value
				}
			}
			other := "namespace=(other) pod=(other)"
			if now[other] < sum {
				t.Fatalf("look %d: the sum went back from %v to %v", look, sum, now[other])
			}
			if sum = now[other]; sum > sent {
				t.Fatalf("look %d: the sum says %v; no more than %v was sent since the first look", look, sum, sent)
			}
			alive := map[string]string{}
			for _, s := range states {
				alive[s.Pod.UID] = "namespace=" + s.Pod.Namespace + " pod=" + s.Pod.Name
			}
			for uid, name := range uids {
				if alive[uid] != "" && now[name] < before[name] {
					t.Fatalf("look %d: %s went back from %v to %v", look, name, before[name], now[name])
				}
			}
			before, uids = now, map[string]string{}
			for uid := range c.chosen.named {
				uids[uid] = alive[uid]
			}
			for i := range states { // everybody sends
				n := uint64(rng.IntN(1000))
				states[i].Counters.Bytes += n
				sent += float64(n)
			}
			if i := rng.IntN(8); i < len(states) { // one goes, and perhaps another one of its name comes
				gone := states[i]
				states = append(states[:i:i], states[i+1:]...)
				if rng.IntN(2) == 0 {
					next++
					states = append(states, state("team", gone.Pod.Name, fmt.Sprint("uid-", next), 0))
				}
			}
			if rng.IntN(3) == 0 {
				next++
				states = append(states, state("team", fmt.Sprint("pod-", next), fmt.Sprint("uid-", next), 0))
			}
		}
	}
}

// A StatefulSet's pod has the name of its predecessor, of which the kernel may hold the rest for a moment; and names
// that came from nowhere good must not cost the scrape.
func TestNoSeriesTwice(t *testing.T) {
	states := []datapath.State{
		state("team", "db-0", "old", 9000), state("team", "db-0", "new", 10), state("\xff", "\x1b[2J", "x", 1), state("\xfe", "\x1b[2J", "y", 1),
		state(Other, Other, "z", 1),
	}
	for places := range 6 {
		c := collector(places, &states, enforcer.Status{})
		gather(t, c)
		gather(t, c)
	}
}

func TestWhereTheKernelCannotBeRead(t *testing.T) {
	c := New(Options{
		States:  func() ([]datapath.State, error) { return nil, os.ErrPermission },
		Repairs: noRepairs, Status: node, Pods: 5,
	})
	c.Passed(time.Second)
	got := series(t, c)
	if got["kernel_read_errors_total"] != 1 || got["problems"] != 1 {
		t.Errorf("%v; want an error counted and the node's state", got)
	}
	if _, ok := got["pods enforced=true reason="]; ok {
		t.Errorf("%v; want no figures of pods", got)
	}
}

func TestPasses(t *testing.T) {
	states := numbered(1)
	c := collector(1, &states, enforcer.Status{})
	c.Passed(2 * time.Millisecond)
	c.Passed(4 * time.Second)
	for _, f := range gather(t, c) {
		if f.GetName() == "kubepace_enforcer_pass_duration_seconds" {
			if h := f.Metric[0].Histogram; h.GetSampleCount() != 2 || h.GetSampleSum() != 4.002 {
				t.Errorf("%v; want 2 passes of 4.002 s together", h)
			}
			return
		}
	}
	t.Error(errors.New("no histogram of passes"))
}

func BenchmarkScrape(b *testing.B) {
	states := numbered(250)
	c := collector(250, &states, node())
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
