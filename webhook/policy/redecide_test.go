// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
)

// A pod is decided under one policy and again under another: it must become what it would be if it were new.
func TestRedecide(t *testing.T) {
	type labels = texts
	tests := []struct {
		name          string
		before, after labels
		asked         texts
		want          texts // annotations in the end
	}{
		{
			"capping given back", labels{labelMax: "50M"}, labels{labelMax: "200M"}, texts{egress: "1G"},
			texts{egress: "200M", requested: "1G", source: "capped"},
		},
		{"given back in full", labels{labelMax: "50M"}, labels{}, texts{egress: "1G"}, texts{egress: "1G", source: "pod"}},
		{
			"given back, as the author spelt it", labels{labelMax: "50M"}, labels{}, texts{egress: "1e9"},
			texts{egress: "1G", requested: "1e9", source: "pod"},
		},
		{
			"capped more", labels{labelMax: "50M"}, labels{labelMax: "20M"}, texts{egress: "1G"},
			texts{egress: "20M", requested: "1G", source: "capped"},
		},
		{
			"capped now", labels{}, labels{labelMax: "20M"}, texts{egress: "25M"},
			texts{egress: "20M", requested: "25M", source: "capped"},
		},
		{"default raised", labels{labelDefault: "10M"}, labels{labelDefault: "30M"}, texts{}, texts{egress: "30M", source: "namespace-default"}},
		{"default lowered", labels{labelDefault: "10M"}, labels{labelDefault: "3M"}, texts{}, texts{egress: "3M", source: "namespace-default"}},
		{"default added", labels{}, labels{labelDefault: "3M"}, texts{}, texts{egress: "3M", source: "namespace-default"}},
		{"default taken away", labels{labelDefault: "3M"}, labels{}, texts{}, texts{}},
		{"default of the maximum's", labels{labelMax: "30M"}, labels{labelMax: "20M"}, texts{}, texts{egress: "20M", source: "namespace-default"}},
		{"an author's word that equals the default", labels{labelDefault: "10M"}, labels{labelDefault: "30M"}, texts{egress: "10M"}, texts{egress: "10M", source: "pod"}},
		{"unseen by admission", labels{labelMode: "off"}, labels{labelMax: "20M"}, texts{egress: "1e9"}, texts{egress: "20M", requested: "1e9", source: "capped"}},
		{"refused: as it is", labels{}, labels{labelMax: "20M", labelOverMax: "deny"}, texts{egress: "1G"}, texts{egress: "1G", source: "pod"}},
		{"below the minimum: as it is", labels{}, labels{labelMin: "20M"}, texts{egress: "1M"}, texts{egress: "1M", source: "pod"}},
		{"dry-run: as it is", labels{}, labels{labelMax: "20M", labelMode: "dry-run"}, texts{egress: "1G"}, texts{egress: "1G", source: "pod"}},
		{"off: as it is", labels{labelMax: "20M"}, labels{labelMode: "off"}, texts{egress: "1G"}, texts{egress: "20M", requested: "1G", source: "capped"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			old := Resolve(Cluster{}, Namespace{Name: "team-a", Labels: tt.before})
			now := Resolve(Cluster{}, Namespace{Name: "team-a", Labels: tt.after})
			running := apply(tt.asked, old.Decide(Pod{Annotations: tt.asked}).Changes)
			d := now.Redecide(Pod{Annotations: running})
			got := apply(running, d.Changes)
			if diff := cmp.Diff(map[string]string(tt.want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if again := now.Redecide(Pod{Annotations: got}); len(again.Changes) != 0 {
				t.Errorf("not idempotent: %+v", again.Changes)
			}
			if !d.Denied() && now.Mode == bandwidth.ModeEnforce {
				if c := now.Check(Pod{Annotations: got}); c.Denied() {
					t.Errorf("the validating half refuses it: %v", c.Violations)
				}
			}
		})
	}
}

// Pods that no limit can hold are left as they are.
func TestRedecideLeavesAlone(t *testing.T) {
	p := Resolve(Cluster{}, Namespace{Name: "team-a", Labels: texts{labelMax: "20M"}})
	annotations := texts{egress: "1G", requested: "2G", source: "capped"}
	for name, pod := range map[string]Pod{
		"host network": {Annotations: annotations, HostNetwork: true},
		"mirror":       {Annotations: annotations, Mirror: true},
	} {
		if d := p.Redecide(pod); len(d.Changes) != 0 || d.Denied() {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// FuzzRedecide: whatever stands in a pod, deciding anew equals deciding the author's words, and is idempotent.
func FuzzRedecide(f *testing.F) {
	f.Add("25M", "50M", "cap", "50M", "1G", "capped")
	f.Add("25M", "-", "-", "10M", "-", "namespace-default")
	f.Add("-", "20M", "deny", "1e9", "x", "pod")
	f.Fuzz(func(t *testing.T, def, most, overMax, ask, request, src string) {
		labels, annotations := texts{}, texts{"other": "kept"}
		set(labels, labelDefault, def)
		set(labels, labelMax, most)
		set(labels, labelOverMax, overMax)
		set(annotations, egress, ask)
		set(annotations, requested, request)
		set(annotations, source, src)
		p := Resolve(Cluster{Max: 10 * bandwidth.Gigabit}, Namespace{Name: "team-a", Labels: labels})
		d := p.Redecide(Pod{Annotations: annotations})
		fresh := p.Decide(Pod{Annotations: AuthorsWords(annotations)})
		if d.Limit != fresh.Limit || d.Denied() != fresh.Denied() {
			t.Fatalf("%+v\n%+v", d, fresh)
		}
		if d.Denied() {
			return
		}
		after := Pod{Annotations: apply(annotations, d.Changes)}
		if again := p.Redecide(after); len(again.Changes) != 0 || again.Denied() || again.Limit != d.Limit {
			t.Fatalf("not idempotent:\n%+v\n%+v", d, again)
		}
		if c := p.Check(after); c.Denied() || len(c.Warnings) != 0 {
			t.Fatalf("the validating half refuses our own work: %+v", c)
		}
	})
}
