// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// TestUnready: each thing that a replica cannot do without makes it unready by itself, and ready once it is there.
func TestUnready(t *testing.T) {
	s := needService(t)
	dir := t.TempDir()
	// unready waits until just this check fails.
	unready := func(t *testing.T, r *lab.Replica, check string) {
		t.Helper()
		eventually(t, "only "+check+" to fail", func() bool {
			failing := []string{}
			for _, name := range []string{"certificates", "server", "caches", "draining"} {
				if code, err := r.Check(name); err != nil || code != http.StatusOK {
					failing = append(failing, name)
				}
			}
			return slices.Equal(failing, []string{check})
		})
		if r.Ready() {
			t.Errorf("ready although %s fails", check)
		}
	}
	t.Run("certificates", func(t *testing.T) {
		writeCertificateFor(t, dir, 30*time.Minute) // of which an hour has passed
		r := s.withFiles(t, "expired", dir)
		unready(t, r, "certificates")
		writeCertificate(t, dir)
		if err := r.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("caches", func(t *testing.T) {
		role := &rbacv1.ClusterRole{}
		if err := s.Client.Get(t.Context(), client.ObjectKey{Name: "kubepace-webhook"}, role); err != nil {
			t.Fatal(err)
		}
		whole := role.DeepCopy()
		role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "limitranges") })
		if len(role.Rules) == len(whole.Rules) {
			t.Fatal("no rule on limit ranges")
		}
		if err := s.Client.Update(t.Context(), role); err != nil {
			t.Fatal(err)
		}
		restore := sync.OnceFunc(func() {
			role.Rules = whole.Rules
			if err := s.Client.Update(t.Context(), role); err != nil {
				t.Error(err)
			}
		})
		defer restore()
		r := s.withFiles(t, "blind", dir)
		unready(t, r, "caches")
		restore()
		if err := r.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestDeploymentManifest: a drain of nodes leaves a replica, replicas keep apart, and the Service sends calls only to
// those that say they are ready.
func TestDeploymentManifest(t *testing.T) {
	s := needService(t)
	objects, err := s.Manifests("manifests/base")
	if err != nil {
		t.Fatal(err)
	}
	var (
		deployment appsv1.Deployment
		budget     policyv1.PodDisruptionBudget
		service    corev1.Service
	)
	found := 0
	for _, o := range objects {
		into := map[string]any{"Deployment": &deployment, "PodDisruptionBudget": &budget, "Service": &service}[o.GetKind()]
		if into == nil || o.GetName() != "kubepace-webhook" {
			continue
		}
		found++
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
			t.Fatal(err)
		}
	}
	if found != 3 {
		t.Fatalf("%d of Deployment, PodDisruptionBudget and Service", found)
	}
	pod := labels.Set(deployment.Spec.Template.Labels)
	selects := func(what string, selector *metav1.LabelSelector) {
		t.Helper()
		if s, err := metav1.LabelSelectorAsSelector(selector); err != nil || s.Empty() || !s.Matches(pod) {
			t.Errorf("%s selects %v, not the webhook's pods %v (%v)", what, s, pod, err)
		}
	}
	if *deployment.Spec.Replicas < 2 {
		t.Errorf("%d replicas", *deployment.Spec.Replicas)
	}
	selects("the budget", budget.Spec.Selector)
	if least := budget.Spec.MinAvailable.IntValue(); least < 1 || least >= int(*deployment.Spec.Replicas) {
		t.Errorf("at least %d of %d replicas: a drain takes all, or never ends", least, *deployment.Spec.Replicas)
	}
	if a := deployment.Spec.Template.Spec.Affinity; a == nil || a.PodAntiAffinity == nil || len(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution) != 1 {
		t.Error("nothing keeps replicas apart")
	} else {
		term := a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm
		selects("the anti-affinity", term.LabelSelector)
		if term.TopologyKey != corev1.LabelHostname {
			t.Errorf("apart by %s", term.TopologyKey)
		}
	}
	selects("the Service", &metav1.LabelSelector{MatchLabels: service.Spec.Selector})
	container := deployment.Spec.Template.Spec.Containers[0]
	if p := container.ReadinessProbe; p == nil || p.HTTPGet == nil || p.HTTPGet.Path != "/readyz" || p.HTTPGet.Port.StrVal != "health" {
		t.Errorf("readiness probe %+v", p)
	}
	if r := deployment.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable.IntValue() != 0 {
		t.Errorf("a rollout may take replicas away first: %+v", r)
	}
	// A drain of 5 s by default, then the longest review.
	if grace := deployment.Spec.Template.Spec.TerminationGracePeriodSeconds; grace == nil || *grace < 20 {
		t.Errorf("terminationGracePeriodSeconds %v", grace)
	}
}
