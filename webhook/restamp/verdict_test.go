// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

const (
	egress    = bandwidth.AnnotationEgress
	requested = bandwidth.AnnotationRequested
	sourceKey = bandwidth.AnnotationSource
)

func under(labels map[string]string) policy.Policy {
	return policy.Resolve(policy.Cluster{}, policy.Namespace{Name: "team-a", Labels: labels})
}

func TestJudge(t *testing.T) {
	type texts = map[string]string
	capped := texts{egress: "50M", requested: "1G", sourceKey: "capped"}
	tests := []struct {
		name   string
		labels texts
		pod    policy.Pod
		want   action
	}{
		{"settled", texts{bandwidth.LabelMax: "50M"}, policy.Pod{Annotations: capped}, settled},
		{"no policy, no limit", nil, policy.Pod{}, settled},
		{"lowered", texts{bandwidth.LabelMax: "20M"}, policy.Pod{Annotations: capped}, stamp},
		{"raised", texts{bandwidth.LabelMax: "80M"}, policy.Pod{Annotations: capped}, stamp},
		{"default added", texts{bandwidth.LabelDefault: "80M"}, policy.Pod{}, stamp},
		{"unseen", texts{bandwidth.LabelDefault: "80M"}, policy.Pod{Annotations: texts{egress: "1e7"}}, stamp},
		{"refused", texts{bandwidth.LabelMax: "20M", bandwidth.LabelOverMax: "deny"}, policy.Pod{Annotations: capped}, refused},
		{"below the minimum", texts{bandwidth.LabelMin: "20M"}, policy.Pod{Annotations: texts{egress: "1M", sourceKey: "pod"}}, refused},
		{"dry-run", texts{bandwidth.LabelMax: "20M", bandwidth.LabelMode: "dry-run"}, policy.Pod{Annotations: capped}, settled},
		{"off", texts{bandwidth.LabelMax: "20M", bandwidth.LabelMode: "off"}, policy.Pod{Annotations: capped}, settled},
		{"mirror", texts{bandwidth.LabelMax: "20M"}, policy.Pod{Annotations: capped, Mirror: true}, settled},
		{"a bad maximum lifts nothing", texts{bandwidth.LabelMax: "5OM"}, policy.Pod{Annotations: capped}, held},
		{"nor does a bad default", texts{bandwidth.LabelDefault: "x"}, policy.Pod{Annotations: texts{egress: "5M", sourceKey: "namespace-default"}}, held},
		{"a bad label, but lower", texts{bandwidth.LabelMax: "20M", bandwidth.LabelMin: "x"}, policy.Pod{Annotations: capped}, stamp},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := judge(under(tt.labels), tt.pod); got.action != tt.want {
				t.Errorf("%s: %+v", got.action, got.decision)
			}
		})
	}
}

func TestNextMark(t *testing.T) {
	for current, want := range map[string]string{
		"": "abcd", "ffff": "abcd", "ffff-7": "abcd", "abcd": "abcd-2", "abcd-2": "abcd-3", "abcd-99": "abcd-100", "abcd-x": "abcd-2", "abcdef": "abcd-2",
	} {
		if got := nextMark("abcd", current); got != want || got == current {
			t.Errorf("%q → %q, want %q", current, got, want)
		}
	}
}

func TestDigest(t *testing.T) {
	a, b := under(map[string]string{bandwidth.LabelMax: "20M"}), under(map[string]string{bandwidth.LabelMax: "21M"})
	if digest(a) != digest(under(map[string]string{bandwidth.LabelMax: "20M"})) || digest(a) == digest(b) || len(digest(a)) != 8 {
		t.Error(digest(a), digest(b))
	}
}

func TestOutcome(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"50M", "20M"}: "lowered", {"20M", "50M"}: "raised", {"", "5M"}: "limited", {"x", "5M"}: "limited",
		{"5M", ""}: "lifted", {"1e7", "10M"}: "rewritten", {"10M", "10M"}: "rewritten",
	} {
		if got := outcome(in[0], in[1]); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestDescribeChange(t *testing.T) {
	most := under(map[string]string{bandwidth.LabelMax: "20M"})
	for want, pod := range map[string]map[string]string{
		`egress limit 50M → 20M: 1G asked, namespace "team-a"'s maximum is 20M (label egress.kubepace.io/max)`: {egress: "50M", requested: "1G", sourceKey: "capped"},
		`egress limit none → 20M: namespace "team-a"'s default (label egress.kubepace.io/max)`:                 nil,
		`egress limit 1e7 → 10M: as the pod asks`:                                                              {egress: "1e7"},
	} {
		d := most.Redecide(policy.Pod{Annotations: pod})
		if got := describeChange(most, pod[egress], d.Limit.String(), d); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// What a verdict depends on stays, the rest goes, twice as well as once.
func TestTrim(t *testing.T) {
	five := corev1.ResourceList{bandwidth.Resource: resource.MustParse("5M")}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "team-a", Name: "web", UID: "u", ResourceVersion: "7", Labels: map[string]string{"app": "web"},
			Annotations:   map[string]string{egress: "5M", "other": "x", corev1.MirrorPodAnnotationKey: "m"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "a", Image: "i"},
			{Name: "b", Image: "i", Resources: corev1.ResourceRequirements{Requests: five, Limits: five}},
		}},
		Status: corev1.PodStatus{PodIP: "10.0.0.1"},
	}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "team-a", Name: "web", UID: "u", ResourceVersion: "7",
			Annotations: map[string]string{egress: "5M", corev1.MirrorPodAnnotationKey: "m"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "b", Resources: corev1.ResourceRequirements{Requests: five, Limits: five}}}},
	}
	for range 2 {
		got, err := trim(pod)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
		pod = got.(*corev1.Pod)
	}
}

// State forgets what is gone and says nothing twice.
func TestState(t *testing.T) {
	s, pod := newState(), key{"team-a", "web"}
	first := telling{"u", refused, "abcd"}
	if !s.tell(pod, first) || s.tell(pod, first) || !s.tell(pod, telling{"u", refused, "ef"}) || !s.tell(pod, telling{"v", refused, "ef"}) {
		t.Error("told twice, or not at all")
	}
	if a, b := s.again(pod), s.again(pod); a != shortest || b != 2*shortest {
		t.Error(a, b)
	}
	for range 100 {
		s.again(pod)
	}
	if d := s.again(pod); d != longest {
		t.Error(d)
	}
	s.forgetPod(pod)
	if len(s.told)+len(s.attempts) != 0 || s.again(pod) != shortest {
		t.Error("not forgotten")
	}
	p := under(map[string]string{bandwidth.LabelMax: "5OM"})
	if changed, known, problems := s.observe("team-a", p); !changed || known || len(problems) != 1 {
		t.Error(changed, known, problems)
	}
	if changed, known, problems := s.observe("team-a", p); changed || !known || len(problems) != 0 {
		t.Error(changed, known, problems)
	}
	s.forgetNamespace("team-a")
	if len(s.namespaces) != 0 {
		t.Error("not forgotten")
	}
}
