// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
)

const (
	egress    = bandwidth.AnnotationEgress
	requested = bandwidth.AnnotationRequested
	source    = bandwidth.AnnotationSource

	labelDefault = bandwidth.LabelDefault
	labelMin     = bandwidth.LabelMin
	labelMax     = bandwidth.LabelMax
	labelOverMax = bandwidth.LabelOverMax
	labelMode    = bandwidth.LabelMode
)

type texts map[string]string

func rate(text string) bandwidth.Rate { return bandwidth.MustParse(text) }

// apply does to annotations what the API server does with a patch.
func apply(annotations map[string]string, changes []Change) map[string]string {
	out := map[string]string{}
	for k, v := range annotations {
		out[k] = v
	}
	for _, c := range changes {
		if c.Remove {
			delete(out, c.Key)
		} else {
			out[c.Key] = c.Value
		}
	}
	return out
}

// verdict is the part of a Decision that the tables compare: the pod as it ends up, or the violations.
type verdict struct {
	Pod        texts
	Reason     Reason
	Warnings   []string
	Violations []string
}

func verdictOf(pod Pod, d Decision) verdict {
	v := verdict{Reason: d.Reason, Warnings: d.Warnings}
	for _, e := range d.Violations {
		v.Violations = append(v.Violations, e.Error())
	}
	if !d.Denied() {
		v.Pod = apply(pod.Annotations, d.Changes)
	}
	return v
}

const at = `metadata.annotations[kubernetes.io/egress-bandwidth]: `

func TestDecide(t *testing.T) {
	tests := []struct {
		name    string
		cluster Cluster
		labels  texts
		pod     Pod
		want    verdict
	}{{
		name: "nothing set, nothing asked",
		pod:  Pod{Annotations: texts{"other": "1"}},
		want: verdict{Pod: texts{"other": "1"}, Reason: ReasonUnlimited},
	}, {
		name: "kept",
		pod:  Pod{Annotations: texts{egress: "10M", "other": "1"}},
		want: verdict{Pod: texts{egress: "10M", source: "pod", "other": "1"}, Reason: "pod"},
	}, {
		name: "normalized",
		pod:  Pod{Annotations: texts{egress: "1e7"}},
		want: verdict{Pod: texts{egress: "10M", source: "pod", requested: "1e7"}, Reason: "pod"},
	}, {
		name:   "namespace default",
		labels: texts{labelDefault: "25M"},
		want:   verdict{Pod: texts{egress: "25M", source: "namespace-default"}, Reason: "namespace-default"},
	}, {
		name:    "cluster default",
		cluster: Cluster{Default: rate("5M")},
		want:    verdict{Pod: texts{egress: "5M", source: "cluster-default"}, Reason: "cluster-default"},
	}, {
		name:    "tightest default: cluster",
		cluster: Cluster{Default: rate("5M")},
		labels:  texts{labelDefault: "25M"},
		want:    verdict{Pod: texts{egress: "5M", source: "cluster-default"}, Reason: "cluster-default"},
	}, {
		name:    "tightest default: namespace, also among equals",
		cluster: Cluster{Default: rate("25M")},
		labels:  texts{labelDefault: "25M"},
		want:    verdict{Pod: texts{egress: "25M", source: "namespace-default"}, Reason: "namespace-default"},
	}, {
		name:   "the maximum is the default where there is none",
		labels: texts{labelMax: "50M"},
		want:   verdict{Pod: texts{egress: "50M", source: "namespace-default"}, Reason: "namespace-default"},
	}, {
		name:   "capped",
		labels: texts{labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "1G"}},
		want: verdict{Pod: texts{egress: "50M", source: "capped", requested: "1G"}, Reason: "capped", Warnings: []string{
			`egress limit 1G is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`}},
	}, {
		name:    "capped at the cluster's tighter maximum",
		cluster: Cluster{Max: rate("20M")},
		labels:  texts{labelMax: "50M"},
		pod:     Pod{Annotations: texts{egress: "1G"}},
		want: verdict{Pod: texts{egress: "20M", source: "capped", requested: "1G"}, Reason: "capped", Warnings: []string{
			`egress limit 1G is above the cluster's maximum 20M (flag --cluster-max): admitted with 20M`}},
	}, {
		name:    "denied by label, every maximum named",
		cluster: Cluster{Max: rate("100M")},
		labels:  texts{labelMax: "50M", labelOverMax: "deny"},
		pod:     Pod{Annotations: texts{egress: "1G"}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "1G": is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max); write at most "50M"`,
			at + `Invalid value: "1G": is above the cluster's maximum 100M (flag --cluster-max); write at most "50M"`}},
	}, {
		name:    "below both minimums",
		cluster: Cluster{Min: rate("1M")},
		labels:  texts{labelMin: "2M"},
		pod:     Pod{Annotations: texts{egress: "10k"}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "10k": is below namespace "team-a"'s minimum 2M (label egress.kubepace.io/min); write at least "2M"`,
			at + `Invalid value: "10k": is below the cluster's minimum 1M (flag --cluster-min); write at least "2M"`}},
	}, {
		name: "not a rate, with a hint and an example",
		pod:  Pod{Annotations: texts{egress: "10 megabits"}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "10 megabits": is not a Kubernetes quantity (did you mean "10M"?); write bits per second like "10M"`}},
	}, {
		name:   "the example works in this namespace",
		labels: texts{labelMax: "2M"},
		pod:    Pod{Annotations: texts{egress: ""}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "": is not a Kubernetes quantity; write bits per second like "2M"`}},
	}, {
		name:   "forged provenance goes",
		labels: texts{labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "10M", source: "cluster-default", requested: "1G"}},
		want:   verdict{Pod: texts{egress: "10M", source: "pod"}, Reason: "pod"},
	}, {
		name: "forged provenance without a limit goes",
		pod:  Pod{Annotations: texts{source: "capped", requested: "1G"}},
		want: verdict{Pod: texts{}, Reason: ReasonUnlimited},
	}, {
		name:   "a standing request is capped again",
		labels: texts{labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "50M", requested: "1G", source: "pod"}},
		want: verdict{Pod: texts{egress: "50M", requested: "1G", source: "capped"}, Reason: "capped", Warnings: []string{
			`egress limit 1G is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`}},
	}, {
		name:   "a new annotation replaces the request",
		labels: texts{labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "20M", requested: "1G", source: "capped"}},
		want:   verdict{Pod: texts{egress: "20M", source: "pod"}, Reason: "pod"},
	}, {
		name:   "a removed annotation gets the default",
		labels: texts{labelMax: "50M", labelDefault: "10M"},
		pod:    Pod{Annotations: texts{requested: "1G", source: "capped"}},
		want:   verdict{Pod: texts{egress: "10M", source: "namespace-default"}, Reason: "namespace-default"},
	}, {
		name:   "host network: warned, unchanged",
		labels: texts{labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "1G"}, HostNetwork: true},
		want: verdict{Pod: texts{egress: "1G"}, Reason: ReasonHostNetwork, Warnings: []string{
			`egress limit "1G" cannot be enforced: hostNetwork pods send from the node's own device`}},
	}, {
		name:   "host network under a default",
		labels: texts{labelDefault: "50M"},
		pod:    Pod{HostNetwork: true},
		want: verdict{Pod: texts{}, Reason: ReasonHostNetwork, Warnings: []string{
			`namespace "team-a"'s egress default 50M (label egress.kubepace.io/default) cannot be enforced: hostNetwork pods send from the node's own device`}},
	}, {
		name: "host network where nothing is limited",
		pod:  Pod{HostNetwork: true},
		want: verdict{Pod: texts{}, Reason: ReasonHostNetwork},
	}, {
		name:   "mirror pod",
		labels: texts{labelDefault: "50M"},
		pod:    Pod{Annotations: texts{egress: "10m"}, Mirror: true},
		want:   verdict{Pod: texts{egress: "10m"}, Reason: ReasonMirror},
	}, {
		name:   "off",
		labels: texts{labelMode: "off", labelMax: "1M"},
		pod:    Pod{Annotations: texts{egress: "10m"}},
		want:   verdict{Pod: texts{egress: "10m"}, Reason: ReasonOff},
	}, {
		name:   "dry-run caps nothing",
		labels: texts{labelMode: "dry-run", labelMax: "50M"},
		pod:    Pod{Annotations: texts{egress: "1G"}},
		want: verdict{Pod: texts{egress: "1G"}, Reason: "capped", Warnings: []string{
			`egress dry-run, nothing changed: egress limit 1G is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M`}},
	}, {
		name:   "dry-run refuses nothing",
		labels: texts{labelMode: "dry-run"},
		pod:    Pod{Annotations: texts{egress: "0"}},
		want: verdict{Pod: texts{egress: "0"}, Reason: ReasonDenied, Warnings: []string{
			`egress dry-run, nothing changed: would be refused: ` + at + `Invalid value: "0": is below the smallest limit, 1k (1000 bits per second); write bits per second like "10M"`}},
	}, {
		name:   "dry-run shows the default",
		labels: texts{labelMode: "dry-run", labelDefault: "5M"},
		want: verdict{Pod: texts{}, Reason: "namespace-default", Warnings: []string{
			`egress dry-run, nothing changed: would be limited to 5M (namespace-default)`}},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Resolve(tt.cluster, Namespace{Name: "team-a", Labels: tt.labels}).Decide(tt.pod)
			if diff := cmp.Diff(tt.want, verdictOf(tt.pod, d)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Settings that cannot be applied: the tightest valid one stands in, and a warning names the label.
func TestProblems(t *testing.T) {
	const ns = `namespace "team-a"`
	tests := []struct {
		name    string
		cluster Cluster
		labels  texts
		good    texts // what labels said before they became unreadable
		ask     string
		limit   string // "" is unlimited
		problem string
	}{{
		name: "bad maximum, known to have been another", labels: texts{labelMax: "5OM", labelDefault: "25M"}, good: texts{labelMax: "50M"}, ask: "1G", limit: "50M",
		problem: ns + `: label egress.kubepace.io/max: "5OM" is not a Kubernetes quantity; 50M, what it said before, applies until it is mended`,
	}, {
		name: "bad maximum, what it was cannot be read either", labels: texts{labelMax: "5OM"}, good: texts{labelMax: "5OM"}, ask: "1G", limit: "1G",
		problem: ns + `: label egress.kubepace.io/max: "5OM" is not a Kubernetes quantity; NO MAXIMUM APPLIES until it is mended`,
	}, {
		name: "bad default, known to have been another", labels: texts{labelDefault: "x"}, good: texts{labelDefault: "5M"}, limit: "5M",
		problem: ns + `: label egress.kubepace.io/default: "x" is not a Kubernetes quantity; 5M, what it said before, applies until it is mended`,
	}, {
		name: "bad maximum, cluster maximum", cluster: Cluster{Max: rate("30M")}, labels: texts{labelMax: "5OM"}, ask: "1G", limit: "30M",
		problem: ns + `: label egress.kubepace.io/max: "5OM" is not a Kubernetes quantity; the cluster's maximum 30M (flag --cluster-max) applies`,
	}, {
		name: "bad maximum, default stands in", labels: texts{labelMax: "50m", labelDefault: "25M"}, ask: "1G", limit: "25M",
		problem: ns + `: label egress.kubepace.io/max: "50m" is below the smallest limit, 1k (1000 bits per second) ("m" means thousandths of a bit; ` +
			`for megabits write "50M"); namespace "team-a"'s default 25M (label egress.kubepace.io/default) is the maximum until it is mended`,
	}, {
		name: "bad maximum, default tighter than the cluster's maximum", cluster: Cluster{Max: rate("1G")},
		labels: texts{labelMax: "x", labelDefault: "25M"}, ask: "1G", limit: "25M",
		problem: ns + `: label egress.kubepace.io/max: "x" is not a Kubernetes quantity; namespace "team-a"'s default 25M (label egress.kubepace.io/default) ` +
			`is the maximum until it is mended`,
	}, {
		name: "bad maximum alone", labels: texts{labelMax: "none"}, ask: "1G", limit: "1G",
		problem: ns + `: label egress.kubepace.io/max: "none" is not a Kubernetes quantity; NO MAXIMUM APPLIES until it is mended`,
	}, {
		name: "bad default, cluster default", cluster: Cluster{Default: rate("7M")}, labels: texts{labelDefault: "x"}, limit: "7M",
		problem: ns + `: label egress.kubepace.io/default: "x" is not a Kubernetes quantity; pods that ask for none get the next default or maximum, if there is one`,
	}, {
		name: "bad default, maximum", labels: texts{labelDefault: "x", labelMax: "50M"}, limit: "50M",
		problem: ns + `: label egress.kubepace.io/default: "x" is not a Kubernetes quantity; pods that ask for none get the next default or maximum, if there is one`,
	}, {
		name: "bad default alone", labels: texts{labelDefault: "-1M"}, limit: "",
		problem: ns + `: label egress.kubepace.io/default: "-1M" is negative; pods that ask for none get the next default or maximum, if there is one`,
	}, {
		name: "bad minimum", labels: texts{labelMin: "x"}, ask: "1k", limit: "1k",
		problem: ns + `: label egress.kubepace.io/min: "x" is not a Kubernetes quantity; there is no such minimum until it is mended`,
	}, {
		name: "minimum above maximum", labels: texts{labelMin: "60M", labelMax: "50M"}, ask: "1M", limit: "1M",
		problem: ns + `'s minimum 60M (label egress.kubepace.io/min) is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max); the minimum is ignored`,
	}, {
		name: "default above maximum", labels: texts{labelDefault: "60M", labelMax: "50M"}, limit: "50M",
		problem: ns + `'s default 60M (label egress.kubepace.io/default) is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max); pods that ask for none get 50M`,
	}, {
		name: "default below minimum", labels: texts{labelDefault: "1M", labelMin: "2M"}, limit: "2M",
		problem: ns + `'s default 1M (label egress.kubepace.io/default) is below namespace "team-a"'s minimum 2M (label egress.kubepace.io/min); pods that ask for none get 2M`,
	}, {
		name: "unknown over-max caps", labels: texts{labelOverMax: "reject", labelMax: "50M"}, ask: "1G", limit: "50M",
		problem: ns + `: label egress.kubepace.io/over-max: "reject" is none of ["cap" "deny"]; "cap" applies`,
	}, {
		name: "unknown mode enforces", labels: texts{labelMode: "disabled", labelMax: "50M"}, ask: "1G", limit: "50M",
		problem: ns + `: label egress.kubepace.io/mode: "disabled" is none of ["enforce" "dry-run" "off"]; "enforce" applies`,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := Pod{}
			if tt.ask != "" {
				pod.Annotations = texts{egress: tt.ask}
			}
			p := Resolve(tt.cluster, Namespace{Name: "team-a", Labels: tt.labels, LastGood: tt.good})
			d := p.Decide(pod)
			if diff := cmp.Diff([]string{tt.problem}, p.Problems); diff != "" {
				t.Errorf("problems (-want +got)\n%s", diff)
			}
			if got := apply(pod.Annotations, d.Changes)[egress]; got != tt.limit || d.Denied() {
				t.Errorf("limit %q, want %q; %v", got, tt.limit, d.Violations)
			}
			if !strings.Contains(strings.Join(d.Warnings, "\n"), tt.problem) {
				t.Errorf("the author is not told: %q", d.Warnings)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name   string
		labels texts
		pod    Pod
		want   verdict
	}{{
		name: "finished", labels: texts{labelMax: "50M"},
		pod:  Pod{Annotations: texts{egress: "50M", source: "capped", requested: "1G"}},
		want: verdict{Pod: texts{egress: "50M", source: "capped", requested: "1G"}, Reason: "capped"},
	}, {
		name: "raised afterwards", labels: texts{labelMax: "50M"},
		pod: Pod{Annotations: texts{egress: "1G", source: "capped"}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "1G": is above namespace "team-a"'s maximum 50M (label egress.kubepace.io/max); write at most "50M"`}},
	}, {
		name: "removed afterwards", labels: texts{labelDefault: "25M"},
		pod: Pod{},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Required value: namespace "team-a"'s egress limit 25M (label egress.kubepace.io/default) applies and was not written or was removed; write "25M" or try again`}},
	}, {
		name: "respelt afterwards",
		pod:  Pod{Annotations: texts{egress: "10000k", source: "pod"}},
		want: verdict{Reason: ReasonDenied, Violations: []string{
			at + `Invalid value: "10000k": is not the canonical text that every network plugin reads alike; write "10M"`}},
	}, {
		name: "provenance forged afterwards",
		pod:  Pod{Annotations: texts{egress: "10M", source: "capped", requested: "1G"}},
		want: verdict{Reason: "pod", Pod: texts{egress: "10M", source: "capped", requested: "1G"}, Warnings: []string{
			`annotation egress.kubepace.io/requested does not fit the limit: it is not what the author asked for`,
			`annotation egress.kubepace.io/source does not fit the limit: it should be "pod"`}},
	}, {
		name: "dry-run", labels: texts{labelMax: "50M", labelMode: "dry-run"},
		pod:  Pod{Annotations: texts{egress: "10m"}},
		want: verdict{Reason: ReasonDenied, Pod: texts{egress: "10m"}},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Resolve(Cluster{}, Namespace{Name: "team-a", Labels: tt.labels}).Check(tt.pod)
			if diff := cmp.Diff(tt.want, verdictOf(tt.pod, d)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestClusterValidate(t *testing.T) {
	good := Cluster{Default: rate("10M"), Min: rate("1M"), Max: rate("50M")}
	if err := good.Validate(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	err := Cluster{Default: rate("60M"), Min: rate("70M"), Max: rate("50M")}.Validate()
	want := "--cluster-min 70M is above --cluster-max 50M\n--cluster-default 60M is above --cluster-max 50M\n--cluster-default 60M is below --cluster-min 70M"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if err := (Cluster{Max: 1}).Validate(); err == nil {
		t.Error("1 bit/s is accepted")
	}
}

func TestLongValuesAreShortened(t *testing.T) {
	d := Resolve(Cluster{}, Namespace{}).Decide(Pod{Annotations: texts{egress: strings.Repeat("é", 1<<17)}})
	if msg := d.Violations.ToAggregate().Error(); len(msg) > 400 || !strings.Contains(msg, "…") {
		t.Errorf("message of %d bytes", len(msg))
	}
}
