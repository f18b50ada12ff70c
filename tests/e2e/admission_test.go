// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// unasked: a pod whose author wrote nothing gets its namespace's default.
func (s *suite) unasked(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "team-b", map[string]string{bandwidth.LabelDefault: "25M"})
	s.admitted(ctx, t, "default", podSpec{namespace: "team-b", name: "unasked", node: "node1"}, "25M", "namespace-default")
	s.deleteNamespace(ctx, t, "team-b")
}

// greedy: a pod whose author asked for too much gets the namespace's maximum.
func (s *suite) greedy(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "team-c", map[string]string{bandwidth.LabelMax: "50M"})
	server := s.admitted(ctx, t, "cap", podSpec{namespace: "team-c", name: "greedy", node: "node1", egress: "1G"}, "50M", "capped")
	if got := server.annotations[bandwidth.AnnotationRequested]; got != "1G" {
		t.Errorf("%s is %q; want what the author wrote, 1G", bandwidth.AnnotationRequested, got)
	}
	s.deleteNamespace(ctx, t, "team-c")
}

// admitted creates a pod, wants admission to have decided so, and its node to keep it.
func (s *suite) admitted(ctx context.Context, t *testing.T, step string, spec podSpec, limit, source string) pod {
	t.Helper()
	server := s.create(ctx, t, spec)
	if got := server.annotations[bandwidth.AnnotationEgress]; got != limit {
		t.Errorf("%s is %q; want %s", bandwidth.AnnotationEgress, got, limit)
	}
	if got := server.annotations[bandwidth.AnnotationSource]; got != source {
		t.Errorf("%s is %q; want %s", bandwidth.AnnotationSource, got, source)
	}
	kept := s.awaitEnforced(ctx, t, server, limit)
	mbps := float64(kept.LimitBPS) / 1e6
	low := 0.85 * mbps
	got := atLeast(low, func() float64 { return s.pull(ctx, t, server, 5*time.Second).BitsPerSecond / 1e6 })
	s.results.add(row{step: step, what: source, asked: spec.egress, limit: limit, mbps: got})
	wantWithin(t, got, low, 0.99*mbps*(1+kept.HorizonMs/5000)) // policing lets one burst through at the beginning
	return server
}

// refused: whoever writes what is no rate reads what is wrong, and what was probably meant.
func (s *suite) refused(ctx context.Context, t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "pod.yaml")
	text := `{apiVersion: v1, kind: Pod,
		metadata: {namespace: clients, name: wordy, annotations: {kubernetes.io/egress-bandwidth: 10 megabits}},
		spec: {containers: [{name: c, image: "kubepace.test/pause:e2e"}]}}`
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := s.Kubectl(ctx, "apply", "-f", manifest)
	if err == nil {
		t.Fatalf("a pod with 10 megabits was let in: %s", out)
	}
	for _, want := range []string{"metadata.annotations[kubernetes.io/egress-bandwidth]", `"10 megabits"`, `did you mean "10M"?`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("kubectl says: %v\nwithout %s", err, want)
		}
	}
	s.results.add(row{step: "refusal", what: "not a rate", asked: "10 megabits", limit: "refused"})
}

// quota: the pods of a namespace have a total, and what is gone is given back.
func (s *suite) quota(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "team-d", nil)
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "egress"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{bandwidth.QuotaKey: resource.MustParse("30M")}},
	}
	if _, err := s.Client.CoreV1().ResourceQuotas("team-d").Create(ctx, quota, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.awaitUsed(ctx, t, "0")
	s.awaitAdvertised(ctx, t)
	for i := range 3 {
		p := s.create(ctx, t, podSpec{namespace: "team-d", name: fmt.Sprintf("counted-%d", i), egress: "10M"})
		s.awaitEnforced(ctx, t, p, "10M")
	}
	fourth := podSpec{namespace: "team-d", name: "fourth", egress: "10M"}
	_, err := s.Client.CoreV1().Pods("team-d").Create(ctx, fourth.object(), metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "exceeded quota: egress") {
		t.Errorf("a fourth pod of 10M under a total of 30M: %v; want it refused for the quota", err)
	}
	s.kubectl(ctx, t, "-n", "team-d", "delete", "pod", "counted-0", "--wait")
	s.awaitUsed(ctx, t, "20M")
	p := s.create(ctx, t, fourth)
	s.awaitEnforced(ctx, t, p, "10M")
	s.results.add(row{step: "quota", what: "4 pods of 10M under a total of 30M", asked: "10M", limit: "10M", note: "3 admitted, a fourth once one was gone"})
	s.deleteNamespace(ctx, t, "team-d")
}

// awaitUsed waits until the quota of team-d counts so much.
func (s *suite) awaitUsed(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		quota, err := s.Client.CoreV1().ResourceQuotas("team-d").Get(ctx, "egress", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if used, ok := quota.Status.Used[bandwidth.QuotaKey]; !ok || used.Cmp(resource.MustParse(want)) != 0 {
			return fmt.Errorf("the quota counts %s; want %s", used.String(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitAdvertised waits until the agents have given every node the resource that counted pods ask for.
func (s *suite) awaitAdvertised(ctx context.Context, t *testing.T) {
	t.Helper()
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		nodes, err := s.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, node := range nodes.Items {
			if _, ok := node.Status.Allocatable[bandwidth.Resource]; !ok {
				return fmt.Errorf("%s does not advertise %s: %v", node.Name, bandwidth.Resource, node.Status.Allocatable)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
}
