// SPDX-License-Identifier: Apache-2.0

package totals

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

// TestWithoutWebhook: no pod exceeds a quota or a maximum, nobody is refused whom no limit concerns, and what was made
// meanwhile gets its limit when the webhook is back.
func TestWithoutWebhook(t *testing.T) {
	s := needService(t)
	quota, bounded, plain, later := s.namespace(t), s.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelMin, "1M"), s.namespace(t), s.namespace(t)
	always := s.namespace(t, bandwidth.LabelAccount, bandwidth.AccountAlways)
	s.quota(t, quota, "30M")
	ranged, held := s.ranged(t)
	live := pod(quota, "live", egress, "10M")
	if err := s.Client.Create(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kube-flannel", "kube-system"} {
		if err := s.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	for _, r := range s.replicas {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := s.up(context.Background()); err != nil {
			t.Errorf("bring the replicas back: %v", err)
		}
	})
	create := func(p *corev1.Pod) error { return s.Client.Create(t.Context(), p) }
	t.Run("quota", func(t *testing.T) { s.quotaAlone(t, quota, live) })
	t.Run("limit range", func(t *testing.T) { s.rangeAlone(t, ranged, held) })
	t.Run("account always", func(t *testing.T) {
		requireRefused(t, create(carrying(pod(always, "lying", egress, "30M"), "5M")), "just as much as the annotation")
		requireRefused(t, create(carrying(pod(always, "wordless"), "5M")), "just as much as the annotation")
		for _, p := range []*corev1.Pod{carrying(pod(always, "counted", egress, "5M"), "5M"), pod(always, "uncounted", egress, "5M"), pod(always, "plain")} {
			if err := create(p); err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
		}
	})
	t.Run("bounds", func(t *testing.T) {
		requireRefused(t, create(pod(bounded, "above", egress, "51M")), `maximum of 50M`, `51M is above it`, `write at most "50M"`)
		requireRefused(t, create(pod(bounded, "none")), `the pod has no limit`)
		requireRefused(t, create(pod(plain, "words", egress, "10 megabits")), `"10 megabits": is not a whole number of bits per second between 1k and 1P`)
		requireRefused(t, create(pod(plain, "milli", egress, "10m")), `"10m": is not a whole number`)
		requireRefused(t, create(pod(plain, "negative", egress, "-5M")), `"-5M": is not a whole number`)
		for _, limit := range []string{"50M", "1M", "5e7", "0.05G", "1Mi", "999k"} {
			p := pod(bounded, "fine", egress, limit)
			if err := s.Client.Create(t.Context(), p, client.DryRunAll); err != nil {
				t.Errorf("%s: %v", limit, err)
			}
		}
	})
	t.Run("a maximum that is no rate refuses nobody", func(t *testing.T) {
		for _, text := range []string{"500", "5OM", "2P", "10m"} {
			if err := create(pod(s.namespace(t, bandwidth.LabelMax, text), "p", egress, "10M")); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
	})
	t.Run("others", func(t *testing.T) {
		for _, ns := range []string{quota, bounded} {
			host := pod(ns, "host")
			host.Spec.HostNetwork = true
			mirror := pod(ns, "mirror", corev1.MirrorPodAnnotationKey, "x", egress, "10m")
			mirror.Spec.NodeName = "node"
			for _, p := range []*corev1.Pod{host, mirror} {
				if err := create(p); err != nil {
					t.Errorf("%s: %v", p.Name, err)
				}
			}
		}
		for _, p := range []*corev1.Pod{pod("kube-flannel", "flannel"), pod("kube-system", "system", egress, "10m"), pod(plain, "plain"), pod(later, "unseen", egress, "1e7")} {
			if err := create(p); err != nil {
				t.Errorf("%s/%s: %v", p.Namespace, p.Name, err)
			}
		}
	})
	if err := s.up(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod made meanwhile to be stamped", func() bool {
		p := pod(later, "unseen")
		return s.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p) == nil && p.Annotations[egress] == "10M" && p.Annotations[bandwidth.AnnotationSource] == bandwidth.SourcePod
	})
}

// ranged is a namespace with a LimitRange of at most 20M, and a pod in it.
func (s *service) ranged(t *testing.T) (namespace string, live *corev1.Pod) {
	t.Helper()
	namespace = s.namespace(t)
	lr := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "egress"}}
	lr.Spec.Limits = []corev1.LimitRangeItem{{Type: corev1.LimitTypePod, Max: corev1.ResourceList{bandwidth.Resource: resource.MustParse("20M")}}}
	if err := s.Client.Create(t.Context(), lr); err != nil {
		t.Fatal(err)
	}
	s.waitCounted(t, namespace)
	live = pod(namespace, "live", egress, "5M")
	if err := s.Client.Create(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	return namespace, live
}

// rangeAlone: what a pod carries is held against the LimitRange by Kubernetes, and its limit against what it carries.
func (s *service) rangeAlone(t *testing.T, namespace string, live *corev1.Pod) {
	t.Helper()
	requireRefused(t, s.Client.Create(t.Context(), pod(namespace, "bare", egress, "5M")), "kubepace.io/egress-bandwidth")
	requireRefused(t, s.Client.Create(t.Context(), carrying(pod(namespace, "above", egress, "30M"), "30M")), "maximum kubepace.io/egress-bandwidth usage per Pod is 20M")
	requireRefused(t, s.Client.Create(t.Context(), carrying(pod(namespace, "lying", egress, "30M"), "5M")), "just as much as the annotation")
	requireRefused(t, s.annotate(t, live, "9M", false), "recreate the pod to raise its limit")
	requireRefused(t, s.annotate(t, live, "9M", true), "recreate the pod to raise its limit")
	if err := s.Client.Create(t.Context(), carrying(pod(namespace, "counted", egress, "5M"), "5M")); err != nil {
		t.Errorf("counted by its author: %v", err)
	}
}

// quotaAlone: in a namespace with a quota nothing comes in uncounted, nor grows.
func (s *service) quotaAlone(t *testing.T, namespace string, live *corev1.Pod) {
	t.Helper()
	requireRefused(t, s.Client.Create(t.Context(), pod(namespace, "unlimited")), `ResourceQuota "egress" counts`, "try again in a moment")
	requireRefused(t, s.Client.Create(t.Context(), pod(namespace, "uncounted", egress, "1M")), `ResourceQuota "egress" counts`)
	requireRefused(t, s.Client.Create(t.Context(), carrying(pod(namespace, "lying", egress, "20M"), "1M")), "just as much as the annotation")
	requireRefused(t, s.Client.Create(t.Context(), carrying(pod(namespace, "bare"), "1M")), "just as much as the annotation")
	if err := s.Client.Create(t.Context(), carrying(pod(namespace, "counted", egress, "5M"), "5M")); err != nil {
		t.Errorf("counted by its author: %v", err)
	}
	requireRefused(t, s.Client.Create(t.Context(), carrying(pod(namespace, "over", egress, "20M"), "20M")), "exceeded quota")
	requireRefused(t, s.annotate(t, live, "11M", false), "recreate the pod to raise its limit")
	requireRefused(t, s.annotate(t, live, "11M", true), "recreate the pod to raise its limit")
	requireRefused(t, s.annotate(t, live, "", false), "recreate the pod to raise its limit")
	if err := s.annotate(t, live, "9M", false); err != nil {
		t.Errorf("lower: %v", err)
	}
}
