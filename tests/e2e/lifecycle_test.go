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

	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// install does what README.md says.
func (s *suite) install(ctx context.Context, t *testing.T) {
	t.Helper()
	manifests, err := filepath.Abs(manifestFolder(t))
	if err != nil {
		t.Fatal(err)
	}
	s.manifests = manifests
	began := time.Now()
	s.kubectl(ctx, t, "apply", "-k", s.manifests)
	for _, workload := range []string{"deployment/kubepace-webhook", "daemonset/kubepace-enforcer"} {
		if _, err := s.Kubectl(ctx, "-n", system, "rollout", "status", workload, timeout(90*time.Second)); err != nil {
			t.Fatalf("%v\n%s", err, s.diagnose(ctx))
		}
	}
	ready := time.Since(began)
	err = cluster.Poll(ctx, time.Minute, func(ctx context.Context) error { return s.dryRun(ctx, "probe") })
	if err != nil {
		t.Fatalf("the webhook is not called: %v\n%s", err, s.diagnose(ctx))
	}
	s.results.add(row{step: "install", what: "kubectl apply -k, webhook and agents ready", note: fmt.Sprintf("in %.1f s", ready.Seconds())})
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

// uninstall does what README.md says, and wants both nodes to be what they were.
func (s *suite) uninstall(ctx context.Context, t *testing.T) {
	s.deleteNamespace(ctx, t, "team-a")
	s.kubectl(ctx, t, "delete", "-k", s.manifests, "--wait", timeout(90*time.Second))
	for _, node := range s.Nodes {
		out, err := node.Output(ctx, s.enforcerFile, "cleanup")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	// The last veths go a moment after their pods.
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		now, err := s.snapshots(ctx)
		if err != nil {
			return err
		}
		if diff := differences(s.before, now); diff != "" {
			return fmt.Errorf("a node is not what it was:\n%s", diff)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// And nobody asks a webhook any more.
	object := podSpec{namespace: "clients", name: "after", egress: "1.5M"}.object()
	if _, err := s.Client.CoreV1().Pods("clients").Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("create a pod without kubepace: %v", err)
	}
	s.results.add(row{step: "uninstall", what: "kubectl delete -k, cleanup", note: "tc, ip, bpffs, sysctls of both nodes as before"})
}

// nodeRestart: a node that was switched off and on again keeps its pods' limits again, without anybody's doing.
func (s *suite) nodeRestart(ctx context.Context, t *testing.T) {
	s.install(ctx, t)
	s.namespace(ctx, t, "team-e", nil)
	server := s.create(ctx, t, podSpec{namespace: "team-e", name: "again", node: "node1", egress: "10M"})
	s.awaitEnforced(ctx, t, server, "10M")
	former := s.containerID(ctx, t, server)
	if err := s.Reboot(ctx, s.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitNode(ctx, s.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	err := cluster.Poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		if id := s.containerID(ctx, t, server); id == "" || id == former {
			return fmt.Errorf("the pod on node1 has not been started again (%q)", id)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.describe(ctx, "team-e", "pods"))
	}
	server = s.awaitReady(ctx, t, "team-e", "again")
	s.awaitEnforced(ctx, t, server, "10M")
	const low = 8.5
	got := atLeast(low, func() float64 { return s.pull(ctx, t, server, 5*time.Second).BitsPerSecond / 1e6 })
	s.results.add(row{step: "node-restart", what: "installed again; the node switched off and on", asked: "10M", limit: "10M", mbps: got})
	wantWithin(t, got, low, 10.4)
}

// containerID of a pod that runs; empty while it does not.
func (s *suite) containerID(ctx context.Context, t *testing.T, p pod) string {
	t.Helper()
	object, err := s.Client.CoreV1().Pods(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range object.Status.ContainerStatuses {
		if c.State.Running != nil {
			return c.ContainerID
		}
	}
	return ""
}
