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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

const system = "kubepace-system"

// suite is the cluster and what the steps share.
type suite struct {
	*cluster.Cluster
	manifests string // folder for kubectl apply -k
	results   results
	before    map[string]snapshot // of each node, before kubepace came
	clientPod pod
}

// step is one subtest; they run in order, in one cluster, and RUN=TestKubepace/NAME runs one alone.
type step struct {
	name string
	run  func(ctx context.Context, t *testing.T)
}

// TestKubepace is the life of an installation: into a cluster, through what users and operators do, and out again.
func TestKubepace(t *testing.T) {
	ctx, c := start(t)
	s := &suite{Cluster: c}
	t.Cleanup(func() { s.results.write(t) })
	s.client(ctx, t)
	t.Run("network", func(t *testing.T) { s.network(ctx, t) })
	s.install(ctx, t)
	for _, step := range []step{
		{"reference", s.reference},
	} {
		t.Run(step.name, func(t *testing.T) {
			say("step %s", step.name)
			step.run(ctx, t)
		})
	}
}

// client starts the pod on node2 that all traffic goes to.
func (s *suite) client(ctx context.Context, t *testing.T) {
	t.Helper()
	s.namespace(ctx, t, "clients", nil)
	s.clientPod = s.create(ctx, t, podSpec{namespace: "clients", name: "client", node: "node2"})
}

// network shows what the cluster's network does without kubepace: far more than any limit, by VXLAN.
func (s *suite) network(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "before", nil)
	server := s.create(ctx, t, podSpec{namespace: "before", name: "server", node: "node1", egress: "10M"})
	sent := s.vxlanBytes(ctx, t, s.Nodes[0])
	got := s.pull(ctx, t, server, 3*time.Second)
	sent = s.vxlanBytes(ctx, t, s.Nodes[0]) - sent
	s.results.add(row{step: "network", what: "without kubepace", asked: "10M", limit: "none", mbps: got.BitsPerSecond / 1e6})
	if got.BitsPerSecond < 100e6 {
		t.Errorf("%.1f Mbit/s between nodes without a limit: too slow to tell what a limit does", got.BitsPerSecond/1e6)
	}
	if sent < got.Bytes {
		t.Errorf("%d bytes left by flannel.1, %d arrived: not by VXLAN", sent, got.Bytes)
	}
	s.deleteNamespace(ctx, t, "before")
}

// install does what README.md says.
func (s *suite) install(ctx context.Context, t *testing.T) {
	t.Helper()
	s.before = s.snapshots(ctx, t)
	manifests, err := filepath.Abs(manifestFolder(t))
	if err != nil {
		t.Fatal(err)
	}
	s.manifests = manifests
	began := time.Now()
	s.kubectl(ctx, t, "apply", "-k", s.manifests)
	for _, workload := range []string{"deployment/kubepace-webhook", "daemonset/kubepace-enforcer"} {
		say("waiting for %s", workload)
		if _, err := s.Kubectl(ctx, "-n", system, "rollout", "status", workload, "--timeout=90s"); err != nil {
			t.Fatalf("%v\n%s", err, s.diagnose(ctx))
		}
	}
	say("kubectl apply -k to ready: %.1f s", time.Since(began).Seconds())
	s.awaitWebhook(ctx, t)
}

// manifestFolder leaves CAP_SYS_RESOURCE out where this machine has none to give.
func manifestFolder(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	const capSysResource = 24
	for line := range strings.Lines(string(status)) {
		var bounding uint64
		if _, err := fmt.Sscanf(line, "CapBnd: %x", &bounding); err == nil && bounding&(1<<capSysResource) == 0 {
			return "manifests/no-sys-resource"
		}
	}
	return "manifests/images"
}

// awaitWebhook waits until kube-apiserver calls the webhook: a pod that is not kept comes back with its limit rewritten.
func (s *suite) awaitWebhook(ctx context.Context, t *testing.T) {
	t.Helper()
	probe := podSpec{namespace: "clients", name: "probe", egress: "1.5M"}.object()
	err := cluster.Poll(ctx, time.Minute, func(ctx context.Context) error {
		got, err := s.Client.CoreV1().Pods("clients").Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && got.Annotations[bandwidth.AnnotationEgress] != "1500k" {
			err = fmt.Errorf("the webhook left %q as it is", got.Annotations[bandwidth.AnnotationEgress])
		}
		return err
	})
	if err != nil {
		t.Fatalf("the webhook is not called: %v\n%s", err, s.diagnose(ctx))
	}
}

// reference is the scenario that kubepace is for: a pod limited to 10M, pulled from by a pod on another node.
func (s *suite) reference(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "team-a", nil)
	server := s.create(ctx, t, podSpec{namespace: "team-a", name: "reference", node: "node1", egress: "10M"})
	s.awaitEnforced(ctx, t, server, "10M")
	got := s.pull(ctx, t, server, 10*time.Second)
	s.results.add(row{step: "reference", what: "a pod on the other node pulls", asked: "10M", limit: "10M", mbps: got.BitsPerSecond / 1e6})
	s.wantWithin(t, got, 9.0, 9.9)
}
