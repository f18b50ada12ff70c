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

func FuzzDecide(f *testing.F) {
	f.Add(uint64(0), uint64(0), uint64(0), "25M", "-", "50M", "-", "-", "1G", "-", "-", false)
	f.Add(uint64(5e6), uint64(1e6), uint64(1e9), "60M", "70M", "50M", "deny", "enforce", "50M", "1G", "capped", false)
	f.Add(uint64(0), uint64(1e6), uint64(0), "x", "1k", "5OM", "cap", "dry-run", "1e7", "1e7", "pod", false)
	f.Add(uint64(0), uint64(0), uint64(2e6), "-", "-", "-", "-", "bad", "10 megabits", "\xff", "cluster-default", true)
	f.Fuzz(func(t *testing.T, def, lo, hi uint64, nsDefault, nsMin, nsMax, overMax, mode, ask, request, src string, host bool) {
		labels, annotations := texts{}, texts{"other": "kept"}
		set(labels, labelDefault, nsDefault)
		set(labels, labelMin, nsMin)
		set(labels, labelMax, nsMax)
		set(labels, labelOverMax, overMax)
		set(labels, labelMode, mode)
		set(annotations, egress, ask)
		set(annotations, requested, request)
		set(annotations, source, src)
		p := Resolve(Cluster{clusterRate(def), clusterRate(lo), clusterRate(hi)}, Namespace{"team-a", labels})
		pod := Pod{Annotations: annotations, HostNetwork: host}
		before := maps.Clone(annotations)
		d := p.Decide(pod)
		if diff := cmp.Diff(before, annotations); diff != "" {
			t.Fatalf("the input changed: %s", diff)
		}
		if p.Mode != bandwidth.ModeEnforce || host {
			if d.Denied() || len(d.Changes) != 0 {
				t.Fatalf("mode %s, host %v: %+v", p.Mode, host, d)
			}
			return
		}
		if d.Denied() {
			if len(d.Changes) != 0 {
				t.Fatalf("refused and changed: %+v", d)
			}
			return
		}
		requireAdmitted(t, p, pod, d)
	})
}

func requireAdmitted(t *testing.T, p Policy, pod Pod, d Decision) {
	t.Helper()
	after := Pod{Annotations: apply(pod.Annotations, d.Changes)}
	text, limited := after.Annotations[egress]
	if !limited {
		if len(p.Maxes) > 0 || d.Limit != 0 {
			t.Fatalf("unlimited under %+v: %+v", p, d)
		}
	} else {
		limit, err := bandwidth.Parse(text)
		if err != nil || limit.String() != text || limit != d.Limit {
			t.Fatalf("admitted %q, decided %v: %v", text, d.Limit, err)
		}
		if len(p.Maxes) > 0 && limit > p.Maxes[0].Rate {
			t.Fatalf("%v is above %v", limit, p.Maxes[0])
		}
		if len(p.Mins) > 0 && limit < p.Mins[0].Rate {
			t.Fatalf("%v is below %v", limit, p.Mins[0])
		}
	}
	if after.Annotations["other"] != "kept" {
		t.Fatal("touched another annotation")
	}
	again := p.Decide(after)
	if len(again.Changes) != 0 || again.Denied() || again.Limit != d.Limit || again.Source != d.Source {
		t.Fatalf("not idempotent:\n%+v\n%+v", d, again)
	}
	if c := p.Check(after); c.Denied() || len(c.Warnings) != 0 {
		t.Fatalf("the validating half refuses our own work: %+v", c)
	}
}
