// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
)

func carries(text string) Container { return Container{Amount: Amount{Request: text, Limit: text}} }

// applyContainers does to a pod what the API server does with the patch.
func applyContainers(pod Pod, changes []ContainerChange) Pod {
	pod.Containers, pod.InitContainers = slices.Clone(pod.Containers), slices.Clone(pod.InitContainers)
	for _, c := range changes {
		list := pod.Containers
		if c.Init {
			list = pod.InitContainers
		}
		list[c.Index].Amount = Amount{}
		if c.Rate != 0 {
			list[c.Index].Amount = Amount{c.Rate.String(), c.Rate.String()}
		}
	}
	return pod
}

var (
	egressQuota = Quota{Name: "egress", Counts: true}
	podRange    = Range{Name: "limits", Type: "Pod", Max: "50M", Min: "1M"}
)

func TestCount(t *testing.T) {
	none := Container{}
	for _, tt := range []struct {
		name       string
		namespace  Namespace
		pod        Pod
		count      string // empty: not counted
		containers []Container
		inits      []Container
		warnings   []string
		violation  string
	}{{
		name: "nothing counts", pod: Pod{Annotations: texts{egress: "10M"}, Containers: []Container{none}},
		containers: []Container{none},
	}, {
		name: "an author's own amount where nothing counts",
		pod:  Pod{Annotations: texts{egress: "10M"}, Containers: []Container{none, carries("7M")}, InitContainers: []Container{carries("8M")}},
		warnings: []string{
			`spec.initContainers[0].resources.requests[kubepace.io/egress-bandwidth]: "8M" was removed: nothing in namespace "team-a" counts it`,
			`spec.containers[1].resources.requests[kubepace.io/egress-bandwidth]: "7M" was removed: nothing in namespace "team-a" counts it`,
		},
		containers: []Container{none, none}, inits: []Container{none},
	}, {
		name: "a quota", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{none, none}},
		count: "10M", containers: []Container{carries("10M"), none},
	}, {
		name: "a quota, and a default", namespace: Namespace{Labels: texts{labelDefault: "5M"}, Quotas: []Quota{egressQuota}},
		pod:   Pod{Containers: []Container{none}},
		count: "5M", containers: []Container{carries("5M")},
	}, {
		name: "a limit range caps, and is counted", namespace: Namespace{Ranges: []Range{podRange}},
		pod:   Pod{Annotations: texts{egress: "1G"}, Containers: []Container{none}},
		count: "50M", containers: []Container{carries("50M")},
		warnings: []string{`egress limit 1G is above LimitRange "limits"'s maximum 50M (max of kubepace.io/egress-bandwidth): admitted with 50M`},
	}, {
		name: "whatever the author wrote there", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{carries("1M")}},
		count: "10M", containers: []Container{carries("10M")},
		warnings: []string{`spec.containers[0].resources.requests[kubepace.io/egress-bandwidth]: "1M" became 10M, the pod's egress limit`},
	}, {
		name: "only once", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{none, carries("10M"), carries("10M")}, InitContainers: []Container{carries("1P")}},
		count: "10M", containers: []Container{none, carries("10M"), none}, inits: []Container{none},
		warnings: []string{
			`spec.initContainers[0].resources.requests[kubepace.io/egress-bandwidth]: "1P" was removed: a pod is counted once, in its first container`,
			`spec.containers[2].resources.requests[kubepace.io/egress-bandwidth]: "10M" was removed: a pod is counted once, in its first container`,
		},
	}, {
		name: "another spelling is no change", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{carries("10000k")}},
		count: "10M", containers: []Container{carries("10000k")},
	}, {
		name: "a request without a limit", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{{Amount: Amount{Request: "10M"}}}},
		count: "10M", containers: []Container{carries("10M")},
		warnings: []string{`spec.containers[0].resources.requests[kubepace.io/egress-bandwidth]: "10M" became 10M, the pod's egress limit`},
	}, {
		name: "no limit under a quota", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod: Pod{Containers: []Container{none}},
		violation: at + `Required value: each pod of namespace "team-a" needs an egress limit, because ResourceQuota "egress" counts it; ` +
			`write one like "10M", or have a default set: kubectl label namespace team-a egress.kubepace.io/default=10M`,
	}, {
		name: "no limit under a minimum", namespace: Namespace{Ranges: []Range{{Name: "floor", Type: "Pod", Min: "20M"}}},
		pod: Pod{Containers: []Container{none}},
		violation: at + `Required value: each pod of namespace "team-a" needs an egress limit, because LimitRange "floor" counts it; ` +
			`write one like "20M", or have a default set: kubectl label namespace team-a egress.kubepace.io/default=20M`,
	}, {
		name: "counted before there is a quota", namespace: Namespace{Labels: texts{bandwidth.LabelAccount: "always"}},
		pod:   Pod{Annotations: texts{egress: "10M"}, Containers: []Container{none}},
		count: "10M", containers: []Container{carries("10M")},
	}, {
		name: "nothing to count before there is a quota", namespace: Namespace{Labels: texts{bandwidth.LabelAccount: "always"}},
		pod:      Pod{Containers: []Container{none}},
		warnings: []string{"no egress limit: the pod is not counted, though label egress.kubepace.io/account asks for it"}, containers: []Container{none},
	}, {
		name: "dry-run changes nothing", namespace: Namespace{Labels: texts{labelMode: "dry-run"}, Quotas: []Quota{egressQuota}},
		pod:        Pod{Annotations: texts{egress: "10M"}, Containers: []Container{carries("1M")}},
		containers: []Container{carries("1M")},
		warnings:   []string{`egress dry-run, nothing changed: spec.containers[0].resources.requests[kubepace.io/egress-bandwidth]: "1M" became 10M, the pod's egress limit`},
	}, {
		name: "nobody can hold a hostNetwork pod", namespace: Namespace{Quotas: []Quota{egressQuota}},
		pod:        Pod{HostNetwork: true, Containers: []Container{none}},
		containers: []Container{none},
	}, {
		name: "off", namespace: Namespace{Labels: texts{labelMode: "off"}, Quotas: []Quota{egressQuota}},
		pod: Pod{Containers: []Container{carries("1M")}}, containers: []Container{carries("1M")},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			tt.namespace.Name = "team-a"
			p := Resolve(Cluster{}, tt.namespace)
			d := p.Decide(tt.pod)
			if tt.violation != "" {
				if len(d.Violations) != 1 || d.Violations[0].Error() != tt.violation || len(d.Containers) != 0 || d.Reason != ReasonDenied {
					t.Fatalf("%+v\nwant violation %s", d, tt.violation)
				}
				return
			}
			var count bandwidth.Rate
			if tt.count != "" {
				count = rate(tt.count)
			}
			if d.Denied() || d.Count != count {
				t.Fatalf("%+v, want a count of %v", d, count)
			}
			after := applyContainers(tt.pod, d.Containers)
			after.Annotations = apply(tt.pod.Annotations, d.Changes)
			if diff := cmp.Diff(tt.containers, after.Containers); diff != "" {
				t.Errorf("containers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.inits, after.InitContainers); diff != "" {
				t.Errorf("init containers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.warnings, d.Warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			if c := p.Check(after); c.Denied() {
				t.Errorf("the validating half refuses: %v", c.Violations)
			}
		})
	}
}

func TestCheckCount(t *testing.T) {
	p := Resolve(Cluster{}, Namespace{Name: "team-a", Quotas: []Quota{egressQuota}})
	stamped := texts{egress: "10M", source: "pod"}
	for name, containers := range map[string][]Container{
		"none":     {{}, {}},
		"too low":  {carries("9M")},
		"too high": {carries("10M"), carries("1M")},
	} {
		d := p.Check(Pod{Annotations: stamped, Containers: containers})
		if !d.Denied() || d.Reason != ReasonDenied || !strings.Contains(d.Violations[0].Error(), `counted with its egress limit 10M (ResourceQuota "egress")`) {
			t.Errorf("%s: %+v", name, d)
		}
	}
	// Wherever it stands, the sum is what Kubernetes counts.
	if d := p.Check(Pod{Annotations: stamped, Containers: []Container{carries("4M"), carries("6M")}}); d.Denied() {
		t.Errorf("split: %v", d.Violations)
	}
	free := Resolve(Cluster{}, Namespace{Name: "team-a"})
	if d := free.Check(Pod{Annotations: stamped, Containers: []Container{carries("4M")}}); d.Denied() || len(d.Warnings) != 1 {
		t.Errorf("carried where nothing counts: %+v", d)
	}
}

func TestCharge(t *testing.T) {
	sidecar := func(text string) Container {
		c := carries(text)
		c.Sidecar = true
		return c
	}
	for name, tt := range map[string]struct {
		pod  Pod
		want bandwidth.Rate
	}{
		"none":                            {Pod{Containers: []Container{{}}}, 0},
		"sum":                             {Pod{Containers: []Container{carries("1M"), carries("2M")}}, 3e6},
		"largest init":                    {Pod{Containers: []Container{carries("1M")}, InitContainers: []Container{carries("5M"), carries("4M")}}, 5e6},
		"sidecars run along":              {Pod{Containers: []Container{carries("1M")}, InitContainers: []Container{sidecar("2M"), carries("4M")}}, 6e6},
		"sidecars add":                    {Pod{Containers: []Container{carries("7M")}, InitContainers: []Container{sidecar("2M"), carries("4M")}}, 9e6},
		"a limit without a request":       {Pod{Containers: []Container{{Amount: Amount{Limit: "3M"}}}}, 3e6},
		"nonsense":                        {Pod{Containers: []Container{carries("x"), carries("-5M"), carries(strings.Repeat("1", 80))}}, 0},
		"more than fits, no overflow":     {Pod{Containers: []Container{carries("9E"), carries("9E")}}, 1<<63 - 1},
		"more than fits, in init as well": {Pod{InitContainers: []Container{sidecar("9E"), sidecar("9E")}}, 1<<63 - 1},
	} {
		if got := tt.pod.Charge(); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// TestLive: pods that exist already, as their authors or the policy change.
func TestLive(t *testing.T) {
	quota := Namespace{Name: "team-a", Quotas: []Quota{egressQuota}}
	counted := []Container{carries("10M")}
	for _, tt := range []struct {
		name        string
		namespace   Namespace
		annotations texts
		containers  []Container
		standing    string // limit before
		anew        bool   // Redecide
		want        texts
		reason      Reason
		allowed     string
		violation   string
	}{{
		name: "raised where nothing counts", namespace: Namespace{Name: "team-a"}, containers: []Container{{}},
		annotations: texts{egress: "20M", source: "pod"}, standing: "10M",
		want: texts{egress: "20M", source: "pod"}, reason: bandwidth.SourcePod,
	}, {
		name: "raised beyond the bounds", namespace: Namespace{Name: "team-a", Labels: texts{labelMax: "15M"}}, containers: []Container{{}},
		annotations: texts{egress: "20M", source: "pod"}, standing: "10M",
		want: texts{egress: "15M", source: "capped", requested: "20M"}, reason: bandwidth.SourceCapped,
	}, {
		name: "lowered", namespace: quota, containers: counted,
		annotations: texts{egress: "5M", source: "pod"}, standing: "10M",
		want: texts{egress: "5M", source: "pod"}, reason: bandwidth.SourcePod,
	}, {
		name: "raised again, to what it is counted with", namespace: quota, containers: counted,
		annotations: texts{egress: "10M", source: "pod"}, standing: "5M",
		want: texts{egress: "10M", source: "pod"}, reason: bandwidth.SourcePod,
	}, {
		name: "raised", namespace: quota, containers: counted,
		annotations: texts{egress: "11M", source: "pod"}, standing: "10M", reason: ReasonDenied,
		violation: at + `Invalid value: "11M": is above 10M, what the pod is counted with; Kubernetes never changes that in a running pod; write at most "10M", or recreate the pod`,
	}, {
		name: "raised, though the quota is gone", namespace: Namespace{Name: "team-a"}, containers: counted,
		annotations: texts{egress: "11M", source: "pod"}, standing: "10M", reason: ReasonDenied,
		violation: at + `Invalid value: "11M": is above 10M, what the pod is counted with; Kubernetes never changes that in a running pod; write at most "10M", or recreate the pod`,
	}, {
		name: "taken away", namespace: quota, containers: counted,
		annotations: texts{}, standing: "10M", reason: ReasonDenied,
		violation: at + `Required value: without a limit the pod could send more than 10M, what the pod is counted with; Kubernetes never changes that in a running pod; write at most "10M", or recreate the pod`,
	}, {
		name: "taken away under a default", namespace: Namespace{Name: "team-a", Labels: texts{labelDefault: "25M"}, Quotas: []Quota{egressQuota}}, containers: counted,
		annotations: texts{}, standing: "10M",
		want: texts{egress: "10M", source: "namespace-default"}, reason: bandwidth.SourceNamespaceDefault, allowed: "25M",
	}, {
		name: "older than the quota, raised", namespace: quota, containers: []Container{{}},
		annotations: texts{egress: "11M", source: "pod"}, standing: "10M", reason: ReasonDenied,
		violation: at + `Invalid value: "11M": is above 10M, what the pod has: it is older than ResourceQuota "egress", which does not count it; write at most "10M", or recreate the pod`,
	}, {
		name: "older than the quota, lowered", namespace: quota, containers: []Container{{}},
		annotations: texts{egress: "9M", source: "pod"}, standing: "10M",
		want: texts{egress: "9M", source: "pod"}, reason: bandwidth.SourcePod,
	}, {
		name: "older than the quota, limited at last", namespace: quota, containers: []Container{{}},
		annotations: texts{egress: "9M"}, want: texts{egress: "9M", source: "pod"}, reason: bandwidth.SourcePod,
	}, {
		name: "older than the quota, unlimited as ever", namespace: quota, containers: []Container{{}},
		annotations: texts{}, want: texts{}, reason: ReasonUnlimited,
	}, {
		name: "the policy gives back what it took", namespace: Namespace{Name: "team-a", Labels: texts{labelMax: "10M"}, Quotas: []Quota{egressQuota}}, containers: counted, anew: true,
		annotations: texts{egress: "5M", source: "capped", requested: "20M"}, standing: "5M",
		want: texts{egress: "10M", source: "capped", requested: "20M"}, reason: bandwidth.SourceCapped,
	}, {
		name: "the policy would give more than is counted", namespace: quota, containers: counted, anew: true,
		annotations: texts{egress: "5M", source: "capped", requested: "20M"}, standing: "5M",
		want: texts{egress: "10M", source: "capped", requested: "20M"}, reason: bandwidth.SourceCapped, allowed: "20M",
	}, {
		name: "the default rises above what is counted", namespace: Namespace{Name: "team-a", Labels: texts{labelDefault: "30M"}, Quotas: []Quota{egressQuota}}, containers: counted, anew: true,
		annotations: texts{egress: "10M", source: "namespace-default"}, standing: "10M",
		want: texts{egress: "10M", source: "namespace-default"}, reason: bandwidth.SourceNamespaceDefault, allowed: "30M",
	}, {
		name: "the default goes", namespace: quota, containers: counted, anew: true,
		annotations: texts{egress: "10M", source: "namespace-default"}, standing: "10M",
		want: texts{egress: "10M", source: "namespace-default"}, reason: ReasonHeld,
	}, {
		name: "a limit range lowers", namespace: Namespace{Name: "team-a", Ranges: []Range{{Name: "l", Type: "Pod", Max: "3M"}}}, containers: counted, anew: true,
		annotations: texts{egress: "10M", source: "pod"}, standing: "10M",
		want: texts{egress: "3M", source: "capped", requested: "10M"}, reason: bandwidth.SourceCapped,
	}} {
		t.Run(tt.name, func(t *testing.T) {
			p := Resolve(Cluster{}, tt.namespace)
			pod := Pod{Annotations: tt.annotations, Containers: tt.containers, Standing: &Standing{}}
			if tt.standing != "" {
				pod.Standing.Limit = rate(tt.standing)
			}
			decide := p.Decide
			if tt.anew {
				decide = p.Redecide
			}
			d := decide(pod)
			if d.Reason != tt.reason || len(d.Containers) != 0 || d.Count != 0 {
				t.Errorf("%+v, want reason %s and containers left alone", d, tt.reason)
			}
			if tt.violation != "" {
				if len(d.Violations) != 1 || d.Violations[0].Error() != tt.violation {
					t.Errorf("violations %v\nwant %s", d.Violations, tt.violation)
				}
				return
			}
			after := texts(apply(tt.annotations, d.Changes))
			if diff := cmp.Diff(tt.want, after); diff != "" || d.Denied() {
				t.Errorf("%v (-want +got):\n%s", d.Violations, diff)
			}
			if got := d.Allowed; tt.allowed != "" && got != rate(tt.allowed) || tt.allowed == "" && got != 0 {
				t.Errorf("allowed %v, want %q", got, tt.allowed)
			}
			pod.Annotations = after
			if again := decide(pod); len(again.Changes) != 0 || again.Denied() {
				t.Errorf("not settled: %+v", again)
			}
			if c := p.Check(pod); c.Denied() {
				t.Errorf("the validating half refuses: %v", c.Violations)
			}
		})
	}
}

func TestResolveRangesAndQuotas(t *testing.T) {
	p := Resolve(Cluster{Max: rate("1G")}, Namespace{
		Name: "team-a", Labels: texts{labelMax: "60M", bandwidth.LabelAccount: "sometimes"},
		Ranges: []Range{
			{Name: "z", Type: "Pod", Max: "70M", Min: "2M"}, podRange,
			{Name: "containers", Type: "Container", Max: "1M"},
			{Name: "odd", Type: "Pod", Max: "-1", Min: "1500m", Others: []string{"default"}},
			{Name: "silent", Type: "Pod"},
		},
		Quotas: []Quota{{Name: "b", Counts: true}, {Name: "a", Counts: true, Others: []string{"limits.kubepace.io/egress-bandwidth"}}, {Name: "c"}},
	})
	var bounds []string
	for _, b := range slices.Concat(p.Maxes, p.Mins) {
		bounds = append(bounds, b.Owner+" "+b.Rate.String())
	}
	if diff := cmp.Diff([]string{`LimitRange "limits" 50M`, `namespace "team-a" 60M`, `LimitRange "z" 70M`, "the cluster 1G", `LimitRange "z" 2M`, `LimitRange "limits" 1M`}, bounds); diff != "" {
		t.Errorf("bounds (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{`LimitRange "limits"`, `LimitRange "odd"`, `LimitRange "z"`, `ResourceQuota "a"`, `ResourceQuota "b"`}, p.CountedBy); diff != "" {
		t.Errorf("counted by (-want +got):\n%s", diff)
	}
	want := []string{
		`LimitRange "containers": an entry of type Container names kubepace.io/egress-bandwidth, which belongs to pods; it is ignored`,
		`LimitRange "odd": default has no meaning for kubepace.io/egress-bandwidth; it is ignored`,
		`LimitRange "odd": min "1500m" is below the smallest limit, 1k (1000 bits per second) ("m" means thousandths of a bit; for megabits write "1500M"); there is no such minimum until it is mended`,
		`ResourceQuota "a": Kubernetes shows limits.kubepace.io/egress-bandwidth and never counts it; write requests.kubepace.io/egress-bandwidth`,
		`namespace "team-a": label egress.kubepace.io/account: "sometimes" is not "always"; it is ignored`,
		`LimitRange "odd": max "-1" is negative; LimitRange "limits"'s maximum 50M (max of kubepace.io/egress-bandwidth) applies`,
	}
	if diff := cmp.Diff(want, p.Problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// TestAllViolationsAtOnce: every bound that a pod breaks is named with the object that set it.
func TestAllViolationsAtOnce(t *testing.T) {
	p := Resolve(Cluster{Max: rate("100M")}, Namespace{
		Name: "team-a", Labels: texts{labelMax: "60M", labelOverMax: "deny"}, Ranges: []Range{podRange, {Name: "other", Type: "Pod", Max: "300M"}},
	})
	d := p.Decide(Pod{Annotations: texts{egress: "200M"}})
	var got []string
	for _, v := range d.Violations {
		got = append(got, strings.TrimPrefix(v.Error(), at))
	}
	want := []string{
		`Invalid value: "200M": is above LimitRange "limits"'s maximum 50M (max of kubepace.io/egress-bandwidth); write at most "50M"`,
		`Invalid value: "200M": is above namespace "team-a"'s maximum 60M (label egress.kubepace.io/max); write at most "50M"`,
		`Invalid value: "200M": is above the cluster's maximum 100M (flag --cluster-max); write at most "50M"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
