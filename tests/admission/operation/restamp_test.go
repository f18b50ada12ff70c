// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// restampRate is the replicas' --restamp-rate, in pods per second.
const restampRate = 10

// TestRestampByTheLeader: one replica re-stamps, and no faster than it may: a bucket of so many tokens cannot have given
// more, however slow or fast the machine is.
func TestRestampByTheLeader(t *testing.T) {
	s := needService(t)
	const pods = 4 * restampRate
	ns := s.namespace(t)
	for i := range pods {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("p-%d", i), Annotations: map[string]string{bandwidth.AnnotationEgress: "1G"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		if err := s.Client.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	// A busy machine may make the leader lose its lead in between; then the next turn tells.
	for turn, limit := range []string{"20M", "10M", "5M"} {
		before, leader := s.lowered(t), s.leader(t)
		began := time.Now()
		space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		labels := `{"metadata":{"labels":{"` + bandwidth.LabelMax + `":"` + limit + `"}}}`
		if err := s.Client.Patch(t.Context(), space, client.RawPatch(types.MergePatchType, []byte(labels))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all pods to have "+limit, func() bool { return s.count(t, ns, limit) == pods })
		if took, least := time.Since(began), (pods/restampRate-1)*time.Second; took < least {
			t.Errorf("%d pods in %s: faster than %d per second", pods, took, restampRate)
		}
		if s.leader(t) != leader {
			t.Logf("turn %d: %s is not the leader any more", turn, leader)
			continue
		}
		for name, now := range s.lowered(t) {
			want := 0.0
			if name == leader {
				want = pods
			}
			if got := now - before[name]; got != want {
				t.Errorf("%s lowered %v pods, want %v; %s leads", name, got, want, leader)
			}
		}
		return
	}
	t.Error("no turn without a change of the leader")
}

// leader is the name of the replica that leads.
func (s *service) leader(t *testing.T) (name string) {
	t.Helper()
	eventually(t, "a leader", func() bool {
		for _, r := range s.replicas {
			if metric(t, r, `leader_election_master_status{name="kubepace-webhook-leader"}`) == 1 {
				name = r.Name
				return true
			}
		}
		return false
	})
	return name
}

// lowered is how many pods each replica has lowered so far.
func (s *service) lowered(t *testing.T) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for _, r := range s.replicas {
		out[r.Name] = metric(t, r, `kubepace_restamp_pods_total{outcome="lowered"}`)
	}
	return out
}

// metric is the value of one; zero where it is not there.
func metric(t *testing.T, r *lab.Replica, name string) float64 {
	t.Helper()
	body, err := r.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if text, found := strings.CutPrefix(line, name+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	return 0
}

// count is how many pods of the namespace have this limit.
func (s *service) count(t *testing.T, namespace, limit string) (n int) {
	t.Helper()
	list := &corev1.PodList{}
	if err := s.Client.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].Annotations[bandwidth.AnnotationEgress] == limit {
			n++
		}
	}
	return n
}
