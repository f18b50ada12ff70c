// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

// webhookRollout: all the webhook's replicas are replaced under creates, and every create is decided by one of them.
func (s *suite) webhookRollout(ctx context.Context, t *testing.T) {
	creating, stop := context.WithCancel(ctx)
	defer stop()
	var clients sync.WaitGroup
	var mu sync.Mutex
	var created int
	var problems []error
	for i := range 2 {
		clients.Go(func() {
			for creating.Err() == nil {
				err := s.dryRun(ctx, fmt.Sprintf("rollout-%d", i))
				mu.Lock()
				created++
				if err != nil {
					problems = append(problems, err)
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	s.kubectl(ctx, t, "-n", system, "rollout", "restart", "deployment/kubepace-webhook")
	_, err := s.Kubectl(ctx, "-n", system, "rollout", "status", "deployment/kubepace-webhook", timeout(120*time.Second))
	stop()
	clients.Wait()
	if err != nil {
		t.Errorf("%v\n%s", err, s.diagnose(ctx))
	}
	if len(problems) > 0 {
		t.Errorf("%d of %d creates were refused or missed by the webhook, such as: %v", len(problems), created, problems[0])
	}
	s.results.add(row{step: "rollout", what: "webhook replaced under creates", asked: "1.5M", limit: "1500k",
		note: fmt.Sprintf("%d creates, %d refused or missed", created, len(problems))})
}

// dryRun creates a pod that is not kept, and wants its limit to come back as the webhook writes it.
func (s *suite) dryRun(ctx context.Context, name string) error {
	object := podSpec{namespace: "clients", name: name, egress: "1.5M"}.object()
	got, err := s.Client.CoreV1().Pods("clients").Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return err
	}
	if limit := got.Annotations[bandwidth.AnnotationEgress]; limit != "1500k" {
		return fmt.Errorf("the webhook left %q as it is", limit)
	}
	return nil
}
