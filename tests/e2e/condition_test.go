// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// condition: `kubectl get pod` says of each limited pod whether its limit is kept, and if not, why not.
func (s *suite) condition(ctx context.Context, t *testing.T) {
	kept := s.awaitEnforced(ctx, t, s.reference10M, "10M")
	c := s.awaitCondition(ctx, t, s.reference10M, corev1.ConditionTrue)
	for _, want := range []string{"10M", kept.Devices[0].Name, kept.Mode} {
		if !strings.Contains(c.Message, want) {
			t.Errorf("the reference pod's condition says %q, without %q", c.Message, want)
		}
	}
	host := s.create(ctx, t, podSpec{namespace: "team-a", name: "host", node: "node1", egress: "10M", hostNetwork: true})
	not := s.awaitCondition(ctx, t, host, corev1.ConditionFalse)
	if not.Reason != "HostNetwork" || !strings.Contains(not.Message, "network namespace") {
		t.Errorf("a pod on the host's network: reason %q, message %q", not.Reason, not.Message)
	}
	s.results.add(row{step: "condition", what: "kubectl get pod -o yaml", asked: "10M", limit: "10M",
		note: fmt.Sprintf("%s: %s; hostNetwork %s: %s", c.Status, c.Message, not.Status, not.Message)})
	s.kubectl(ctx, t, "-n", "team-a", "delete", "pod", "host", "--wait")
}

// awaitCondition waits until the pod has our condition with this status.
func (s *suite) awaitCondition(ctx context.Context, t *testing.T, p pod, want corev1.ConditionStatus) corev1.PodCondition {
	t.Helper()
	var got corev1.PodCondition
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		object, err := s.Client.CoreV1().Pods(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range object.Status.Conditions {
			if c.Type == bandwidth.ConditionEnforced && c.Status == want {
				got = c
				return nil
			}
		}
		return fmt.Errorf("pod %s/%s has no condition %s=%s: %+v", p.namespace, p.name, bandwidth.ConditionEnforced, want, object.Status.Conditions)
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
	return got
}
