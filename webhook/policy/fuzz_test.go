// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
)

// set adds a key unless the value says that it is absent.
func set(m map[string]string, key, value string) {
	if value != "-" {
		m[key] = value
	}
}

// clusterRate turns a fuzzed number into a rate that the flags could hold.
func clusterRate(n uint64) bandwidth.Rate {
	if r := bandwidth.Rate(n % uint64(bandwidth.MaxRate+1)); r.Valid() {
		return r
	}
	return 0
}

// settingsOf turns a fuzzed text into a namespace: words at fixed places, "-" for absent.
func settingsOf(nsDefault, nsMin, nsMax, overMax, mode, account, rangeMin, rangeMax string, quota bool) Namespace {
	labels := texts{}
	set(labels, labelDefault, nsDefault)
	set(labels, labelMin, nsMin)
	set(labels, labelMax, nsMax)
	set(labels, labelOverMax, overMax)
	set(labels, labelMode, mode)
	set(labels, bandwidth.LabelAccount, account)
	ns := Namespace{Name: "team-a", Labels: labels}
	if rangeMin+rangeMax != "--" {
		r := Range{Name: "r", Type: "Pod", Min: rangeMin, Max: rangeMax}
		if rangeMin == "-" {
			r.Min = ""
		}
		if rangeMax == "-" {
			r.Max = ""
		}
		ns.Ranges = []Range{r}
	}
	if quota {
		ns.Quotas = []Quota{egressQuota}
	}
	return ns
}

// podOf is a pod with two containers and an init container, which carry what the texts say.
func podOf(ask, request, src, first, second, init string, host bool) Pod {
	annotations := texts{"other": "kept"}
	set(annotations, egress, ask)
	set(annotations, requested, request)
	set(annotations, source, src)
	amount := func(text string) Container {
		if text == "-" {
			return Container{}
		}
		return carries(text)
	}
	return Pod{
		Annotations: annotations, HostNetwork: host,
		Containers: []Container{amount(first), amount(second)}, InitContainers: []Container{amount(init)},
	}
}

func FuzzDecide(f *testing.F) {
	f.Add(uint64(0), uint64(0), uint64(0), "25M", "-", "50M", "-", "-", "1G", "-", "-", false, "-", "-", "-", true, "-", "-", "-", uint64(0), false)
	f.Add(uint64(5e6), uint64(1e6), uint64(1e9), "60M", "70M", "50M", "deny", "enforce", "50M", "1G", "capped", false, "always", "1M", "-", false, "7M", "-", "9M", uint64(0), false)
	f.Add(uint64(0), uint64(1e6), uint64(0), "x", "1k", "5OM", "cap", "dry-run", "1e7", "1e7", "pod", false, "-", "-", "-1", true, "1e7", "1M", "-", uint64(1e7), false)
	f.Add(uint64(0), uint64(0), uint64(2e6), "-", "-", "-", "-", "bad", "10 megabits", "\xff", "cluster-default", true, "x", "2P", "0", true, "-", "9E", "9E", uint64(1), true)
	f.Add(uint64(0), uint64(0), uint64(0), "30M", "-", "-", "-", "-", "5M", "20M", "capped", false, "-", "-", "-", true, "10M", "-", "-", uint64(5e6), true)
	f.Fuzz(func(t *testing.T, def, lo, hi uint64, nsDefault, nsMin, nsMax, overMax, mode, ask, request, src string, host bool,
		account, rangeMin, rangeMax string, quota bool, first, second, init string, standing uint64, anew bool,
	) {
		ns := settingsOf(nsDefault, nsMin, nsMax, overMax, mode, account, rangeMin, rangeMax, quota)
		p := Resolve(Cluster{clusterRate(def), clusterRate(lo), clusterRate(hi)}, ns)
		pod := podOf(ask, request, src, first, second, init, host)
		if standing > 0 {
			pod.Standing = &Standing{Limit: clusterRate(standing)}
		}
		decide := p.Decide
		if anew && pod.Standing != nil {
			decide = p.Redecide
		}
		before := maps.Clone(pod.Annotations)
		d := decide(pod)
		if diff := cmp.Diff(before, pod.Annotations); diff != "" {
			t.Fatalf("the input changed: %s", diff)
		}
		if p.Mode != bandwidth.ModeEnforce || host {
			if d.Denied() || len(d.Changes) != 0 || len(d.Containers) != 0 {
				t.Fatalf("mode %s, host %v: %+v", p.Mode, host, d)
			}
			return
		}
		if d.Denied() {
			if len(d.Changes) != 0 || len(d.Containers) != 0 {
				t.Fatalf("refused and changed: %+v", d)
			}
			return
		}
		requireAdmitted(t, p, pod, d, decide)
	})
}

func requireAdmitted(t *testing.T, p Policy, pod Pod, d Decision, decide func(Pod) Decision) {
	t.Helper()
	after := applyContainers(pod, d.Containers)
	after.Annotations = apply(pod.Annotations, d.Changes)
	if d.Reason != ReasonHeld {
		requireWithin(t, p, after, d)
	}
	requireCounted(t, p, after, d)
	if after.Annotations["other"] != "kept" {
		t.Fatal("touched another annotation")
	}
	again := decide(after)
	if len(again.Changes) != 0 || len(again.Containers) != 0 || again.Denied() || again.Limit != d.Limit || again.Source != d.Source {
		t.Fatalf("not idempotent:\n%+v\n%+v", d, again)
	}
	if c := p.Check(after); d.Reason != ReasonHeld && c.Denied() {
		t.Fatalf("the validating half refuses our own work: %+v", c)
	}
}

// requireWithin: the limit that the pod ends up with is the decided one, in its canonical text, within the bounds.
func requireWithin(t *testing.T, p Policy, after Pod, d Decision) {
	t.Helper()
	text, limited := after.Annotations[egress]
	if !limited {
		if len(p.Maxes) > 0 || d.Limit != 0 {
			t.Fatalf("unlimited under %+v: %+v", p, d)
		}
		return
	}
	limit, err := bandwidth.Parse(text)
	if err != nil || limit.String() != text || limit != d.Limit {
		t.Fatalf("admitted %q, decided %v: %v", text, d.Limit, err)
	}
	if len(p.Maxes) > 0 && limit > p.Maxes[0].Rate {
		t.Fatalf("%v is above %v", limit, p.Maxes[0])
	}
	if most, _ := p.ceiling(after); most == 0 && len(p.Mins) > 0 && limit < p.Mins[0].Rate {
		t.Fatalf("%v is below %v", limit, p.Mins[0])
	}
}

// requireCounted: a new pod is counted with its limit where anything counts, and with nothing elsewhere; one that exists
// never has more than it is counted with.
func requireCounted(t *testing.T, p Policy, after Pod, d Decision) {
	t.Helper()
	charge := after.Charge()
	switch {
	case after.Standing == nil && p.Counted() && charge != d.Limit:
		t.Fatalf("counted with %v, limit %v", charge, d.Limit)
	case after.Standing == nil && !p.Counted() && charge != 0:
		t.Fatalf("counted with %v where nothing counts", charge)
	case after.Standing != nil && d.Reason != ReasonHeld && charge > 0 && (d.Limit == 0 || d.Limit > max(charge, bandwidth.MinRate)):
		t.Fatalf("limit %v is above the count %v", d.Limit, charge)
	}
}
