// SPDX-License-Identifier: Apache-2.0

package totals

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// annotate sets the limit of a pod that exists; "" takes it away. Status goes by pods/status.
func (s *service) annotate(t *testing.T, p *corev1.Pod, limit string, status bool) error {
	t.Helper()
	value := `"` + limit + `"`
	if limit == "" {
		value = "null"
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+egress+`":`+value+`}}}`))
	if status {
		return s.Client.Status().Patch(t.Context(), p, patch)
	}
	return s.Client.Patch(t.Context(), p, patch)
}

// TestLivePods: lowering is always allowed, raising up to what the pod is counted with, by whichever door.
func TestLivePods(t *testing.T) {
	s := needService(t)
	ns := s.namespace(t)
	old := pod(ns, "older", egress, "10M")
	if err := s.Client.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if carried(old) != "0" {
		t.Errorf("counted where nothing counts: %s", carried(old))
	}
	q := s.quota(t, ns, "30M")
	for name, status := range map[string]bool{"pods": false, "status": true} {
		t.Run(name, func(t *testing.T) {
			p := pod(ns, name, egress, "10M")
			if err := s.Client.Create(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			for _, limit := range []string{"4M", "10M", "10000k"} {
				if err := s.annotate(t, p, limit, status); err != nil {
					t.Errorf("to %s: %v", limit, err)
				}
			}
			requireRefused(t, s.annotate(t, p, "11M", status), "is above 10M, what the pod is counted with", "recreate the pod")
			requireRefused(t, s.annotate(t, p, "", status), "without a limit the pod could send more than 10M")
			if err := s.annotate(t, old, "9M", status); err != nil {
				t.Errorf("lower the older pod: %v", err)
			}
			requireRefused(t, s.annotate(t, old, "12M", status), "is above 9M, what the pod has", `older than ResourceQuota "egress"`)
			// Other people's changes are none of our business.
			if err := s.Client.Patch(t.Context(), p, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"other":"1"}}}`))); err != nil {
				t.Errorf("another annotation: %v", err)
			}
		})
	}
	eventually(t, "the quota to count both", func() bool { return s.used(t, q) == "20M" })
	requireRefused(t, s.Client.Create(t.Context(), pod(ns, "more", egress, "11M")), "exceeded quota", "requests.kubepace.io/egress-bandwidth=11M", "limited: requests.kubepace.io/egress-bandwidth=30M")
	s.requireUncounted(t, ns)
	requireRefused(t, s.Client.Create(t.Context(), pod(ns, "unlimited")), `needs an egress limit, because ResourceQuota "egress" counts it`)
	t.Run("resize", func(t *testing.T) { s.resize(t, ns) })
}

// requireUncounted waits for the event that names the pod which is older than the quota, and for the metrics.
func (s *service) requireUncounted(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, "an event about the uncounted pod", func() bool {
		list := &corev1.EventList{}
		if err := s.Client.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
			return false
		}
		return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.Reason == "EgressUncounted" && strings.Contains(e.Message, "does not count 1 running pods that are older (older), which may send")
		})
	})
	eventually(t, "the metrics of it, in bits/s, from the leader", func() bool {
		label := `{namespace="` + namespace + `"} `
		return slices.ContainsFunc(s.replicas, func(r *lab.Replica) bool {
			body, err := r.Metrics()
			return err == nil && strings.Contains(body, "kubepace_uncounted_pods"+label+"1\n") && strings.Contains(body, "kubepace_uncounted_bits_per_second"+label+"9e+06\n")
		})
	})
}

// resize changes the processor time of a counted pod, which leaves the count alone.
func (s *service) resize(t *testing.T, namespace string) {
	t.Helper()
	p := pod(namespace, "resized", egress, "1M")
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("100m")}
	if err := s.Client.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	patch := client.RawPatch(types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"200m"}}}]}}`))
	if err := s.Client.SubResource("resize").Patch(t.Context(), p, patch); err != nil {
		t.Errorf("resize: %v", err)
	}
	if carried(p) != "1M" || p.Spec.Containers[0].Resources.Requests.Cpu().String() != "200m" {
		t.Errorf("after resize: %v", p.Spec.Containers[0].Resources.Requests)
	}
}

// TestLimitRange: Kubernetes' own LimitRanger and ours say the same, in every mode.
func TestLimitRange(t *testing.T) {
	s := needService(t)
	ns := s.namespace(t)
	lr := &corev1.LimitRange{}
	lr.Namespace, lr.Name = ns, "egress"
	lr.Spec.Limits = []corev1.LimitRangeItem{{
		Type: corev1.LimitTypePod,
		Max:  corev1.ResourceList{bandwidth.Resource: resource.MustParse("20M")}, Min: corev1.ResourceList{bandwidth.Resource: resource.MustParse("2M")},
	}}
	if err := s.Client.Create(t.Context(), lr); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the limit range to be known", func() bool {
		p := pod(ns, "probe", egress, "1G")
		return s.Client.Create(t.Context(), p, client.DryRunAll) == nil && carried(p) == "20M"
	})
	p := pod(ns, "capped", egress, "1G")
	if err := s.Client.Create(t.Context(), p); err != nil || carried(p) != "20M" || p.Annotations[egress] != "20M" {
		t.Errorf("%v: %v carries %s", err, p.Annotations, carried(p))
	}
	p = pod(ns, "unasked")
	if err := s.Client.Create(t.Context(), p); err != nil || carried(p) != "20M" || p.Annotations[egress] != "20M" {
		t.Errorf("a maximum is the default: %v: %v carries %s", err, p.Annotations, carried(p))
	}
	requireRefused(t, s.Client.Create(t.Context(), pod(ns, "low", egress, "1M")), `below LimitRange "egress"'s minimum 2M`)
	deny := `{"metadata":{"labels":{"` + bandwidth.LabelOverMax + `":"deny"}}}`
	space := &corev1.Namespace{}
	space.Name = ns
	if err := s.Client.Patch(t.Context(), space, client.RawPatch(types.MergePatchType, []byte(deny))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "denial", func() bool {
		return s.Client.Create(t.Context(), pod(ns, "probe", egress, "1G"), client.DryRunAll) != nil
	})
	requireRefused(t, s.Client.Create(t.Context(), pod(ns, "high", egress, "1G")), `above LimitRange "egress"'s maximum 20M`)
	// An author's own amounts: one count, and it is the limit.
	p = carrying(pod(ns, "own", egress, "5M"), "19M")
	p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", Resources: p.Spec.Containers[0].Resources}}
	if err := s.Client.Create(t.Context(), p); err != nil || carried(p) != "5M" || len(p.Spec.InitContainers[0].Resources.Limits) != 0 {
		t.Errorf("%v: carries %s, init %v", err, carried(p), p.Spec.InitContainers[0].Resources)
	}
}

// TestAccountAlways: a namespace can have its pods counted before there is a quota, and one without any has them stripped.
func TestAccountAlways(t *testing.T) {
	s := needService(t)
	ns := s.namespace(t, bandwidth.LabelAccount, bandwidth.AccountAlways)
	s.waitCounted(t, ns)
	p := pod(ns, "counted", egress, "5M")
	if err := s.Client.Create(t.Context(), p); err != nil || carried(p) != "5M" {
		t.Errorf("%v: carries %s", err, carried(p))
	}
	if err := s.Client.Create(t.Context(), pod(ns, "unlimited")); err != nil {
		t.Errorf("without a limit, before there is a quota: %v", err)
	}
	plain := s.namespace(t)
	p = carrying(pod(plain, "own", egress, "5M"), "5M")
	if err := s.Client.Create(t.Context(), p); err != nil || carried(p) != "0" {
		t.Errorf("where nothing counts: %v: carries %s", err, carried(p))
	}
}
