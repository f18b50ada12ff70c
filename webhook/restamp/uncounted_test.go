// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// running is a pod as the cache holds it: limit and count may be empty.
func running(name, limit, count string, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name}}
	if limit != "" {
		p.Annotations = map[string]string{egress: limit}
	}
	p.Spec.Containers = []corev1.Container{{Name: "c"}}
	if count != "" {
		amount := corev1.ResourceList{bandwidth.Resource: resource.MustParse(count)}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amount, Limits: amount}
	}
	for _, c := range change {
		c(&p)
	}
	trimmed, err := trim(&p)
	if err != nil {
		panic(err)
	}
	return *trimmed.(*corev1.Pod)
}

func TestUncounted(t *testing.T) {
	now := metav1.NewTime(time.Now())
	others := []corev1.Pod{
		running("counted", "10M", "10M"),
		running("going", "10M", "", func(p *corev1.Pod) { p.DeletionTimestamp = &now }),
		running("host", "", "", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		running("mirror", "", "", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }),
	}
	for name, tt := range map[string]struct {
		pods []corev1.Pod
		want uncounted
		text string
	}{
		"none":    {others, uncounted{}, ""},
		"limited": {append(others, running("a", "10M", ""), running("b", "5M", "")), uncounted{2, 0, 15e6}, `does not count 2 running pods that are older (a, b), which may send 15M together; recreate`},
		"both":    {append(others, running("a", "10M", ""), running("b", "", ""), running("c", "1k", ""), running("d", "x", "")), uncounted{4, 2, 10001e3}, `4 running pods that are older (a, b, c, …), of which 2 have no limit and the others may send 10001k together`},
		"without": {append(others, running("a", "", "")), uncounted{1, 1, 0}, "1 running pods that are older (a), which have no limit"},
	} {
		got, names := countUncounted(tt.pods)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
		if text := describeUncounted(got, []string{`ResourceQuota "egress"`}, names); !strings.Contains(text, tt.text) {
			t.Errorf("%s: %s", name, text)
		}
	}
}

func TestUncountedIsToldWhenThereAreMore(t *testing.T) {
	s := newState()
	for i, tt := range []struct {
		now  uncounted
		more bool
	}{{uncounted{}, false}, {uncounted{pods: 2}, true}, {uncounted{pods: 2}, false}, {uncounted{pods: 1}, false}, {uncounted{pods: 2}, true}, {uncounted{pods: 2, unlimited: 1}, true}, {uncounted{}, false}} {
		if got := s.uncountedChanged("team-a", tt.now); got != tt.more {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

func TestUncountedMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	values := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, metric := range f.GetMetric() {
				out[f.GetName()] += metric.GetGauge().GetValue()
			}
		}
		return out
	}
	m.uncounted("team-a", uncounted{pods: 2, bits: 15e6})
	if diff := cmp.Diff(map[string]float64{"kubepace_uncounted_pods": 2, "kubepace_uncounted_bits_per_second": 15e6}, values()); diff != "" {
		t.Error(diff)
	}
	m.uncounted("team-a", uncounted{})
	m.policyProblems("team-a", 3)
	if diff := cmp.Diff(map[string]float64{"kubepace_policy_problems": 3}, values()); diff != "" {
		t.Error(diff)
	}
	m.policyProblems("team-a", 0)
	if got := values(); len(got) != 0 {
		t.Errorf("a namespace without such pods is still shown: %v", got)
	}
}

// TestJudgeCounted: a running pod never gets more than it is counted with.
func TestJudgeCounted(t *testing.T) {
	quota := policy.Namespace{Name: "team-a", Quotas: []policy.Quota{{Name: "egress", Counts: true}}}
	with := func(labels map[string]string) policy.Namespace {
		ns := quota
		ns.Labels = labels
		return ns
	}
	mine := func(limit, source string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{egress: limit, sourceKey: source} }
	}
	for name, tt := range map[string]struct {
		namespace policy.Namespace
		pod       corev1.Pod
		want      action
		words     string
	}{
		"as it was": {quota, running("p", "", "10M", mine("10M", "pod")), settled, ""},
		"lowered":   {with(map[string]string{bandwidth.LabelMax: "5M"}), running("p", "", "10M", mine("10M", "pod")), stamp, ""},
		"given back": {quota, running("p", "", "10M", func(p *corev1.Pod) {
			p.Annotations = map[string]string{egress: "5M", sourceKey: "capped", requested: "10M"}
		}), stamp, ""},
		"the default rises": {with(map[string]string{bandwidth.LabelDefault: "30M"}), running("p", "", "10M", mine("10M", "namespace-default")), recreate,
			"may have an egress limit of 30M today, and keeps at most 10M, what the pod is counted with; Kubernetes never changes that in a running pod: recreate the pod"},
		"the default goes": {quota, running("p", "", "10M", mine("10M", "namespace-default")), recreate, "needs no egress limit today, and keeps at most 10M"},
		"older than the quota": {with(map[string]string{bandwidth.LabelDefault: "30M"}), running("p", "", "", mine("10M", "namespace-default")), recreate,
			`keeps at most 10M, what the pod has: it is older than ResourceQuota "egress", which does not count it: recreate the pod`},
	} {
		v := judge(policy.Resolve(policy.Cluster{}, tt.namespace), policyPod(&tt.pod))
		if v.action != tt.want {
			t.Errorf("%s: %s %+v", name, v.action, v.decision)
		}
		if text := describeRecreate(v.decision); tt.words != "" && !strings.Contains(text, tt.words) {
			t.Errorf("%s: %s", name, text)
		}
	}
}
