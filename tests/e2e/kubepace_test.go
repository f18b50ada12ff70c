// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

const system = "kubepace-system"

// suite is the cluster and what the steps share.
type suite struct {
	*cluster.Cluster
	manifests    string // folder for kubectl apply -k
	enforcerFile string // the program on the machine, for what an administrator does on a node
	results      results
	before       map[string]snapshot // of each node, before kubepace came
	clientPod    pod
	reference10M pod
}

// step is one subtest; they run in order, in one cluster.
type step struct {
	name string
	run  func(ctx context.Context, t *testing.T)
}

// repeatable are the steps that leave everything as it was: COUNT=10 runs them ten times.
var repeatable = []string{"crowd", "node-programs"}

// TestKubepace is the life of an installation: into a cluster, through what users and operators do, and out again.
// RUN=TestKubepace/NAME runs one step alone.
func TestKubepace(t *testing.T) {
	ctx, c := start(t)
	s := &suite{Cluster: c, enforcerFile: os.Getenv(envEnforcer)}
	t.Cleanup(func() { s.results.write(t) })
	s.client(ctx, t)
	t.Run("network", func(t *testing.T) { s.network(ctx, t) })
	s.before = s.settled(ctx, t)
	s.install(ctx, t)
	s.namespace(ctx, t, "team-a", nil)
	s.reference10M = s.create(ctx, t, podSpec{namespace: "team-a", name: "reference", node: "node1", egress: "10M", netperf: true})
	for _, step := range []step{
		{"reference", s.reference},
		{"inspect", s.inspect},
		{"condition", s.condition},
		{"default", s.unasked},
		{"cap", s.greedy},
		{"refusal", s.refused},
		{"quota", s.quota},
		{"live", s.live},
		{"deletion", s.deletion},
		{"crowd", s.crowd},
		{"agent-restart", s.agentRestart},
		{"node-programs", s.nodePrograms},
		{"outage", s.outage},
		{"rollout", s.webhookRollout},
		{"uninstall", s.uninstall},
		{"node-restart", s.nodeRestart},
	} {
		times := 1
		if slices.Contains(repeatable, step.name) {
			times = repeats
		}
		for range times {
			t.Run(step.name, func(t *testing.T) {
				say("step %s", t.Name())
				step.run(ctx, t)
			})
		}
	}
}

// client starts the pod on node2 that all traffic goes to.
func (s *suite) client(ctx context.Context, t *testing.T) {
	t.Helper()
	s.namespace(ctx, t, "clients", nil)
	s.clientPod = s.create(ctx, t, podSpec{namespace: "clients", name: "client", node: "node2", netperf: true})
}

// network shows what the cluster's network does without kubepace: far more than any limit, by VXLAN.
func (s *suite) network(ctx context.Context, t *testing.T) {
	s.namespace(ctx, t, "before", nil)
	server := s.create(ctx, t, podSpec{namespace: "before", name: "server", node: "node1", egress: "10M"})
	_, before, err := s.Nodes[0].LinkBytes("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	got := s.pull(ctx, t, server, 3*time.Second)
	_, after, err := s.Nodes[0].LinkBytes("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	s.results.add(row{step: "network", what: "without kubepace", asked: "10M", limit: "none", mbps: got.BitsPerSecond / 1e6})
	if got.BitsPerSecond < 100e6 {
		t.Errorf("%.1f Mbit/s between nodes without a limit: too slow to tell what a limit does", got.BitsPerSecond/1e6)
	}
	if after-before < got.Bytes {
		t.Errorf("%d bytes left by flannel.1, %d arrived: not by VXLAN", after-before, got.Bytes)
	}
	s.deleteNamespace(ctx, t, "before")
}

// reference is the scenario that kubepace is for: a pod limited to 10M, pulled from by a pod on another node.
func (s *suite) reference(ctx context.Context, t *testing.T) {
	kept := s.awaitEnforced(ctx, t, s.reference10M, "10M")
	low, high := 9.0, 9.9
	if kept.Mode == "pacing" {
		low, high = 9.4, 9.8
	}
	for what, measure := range map[string]func() float64{
		"iperf3 -R":          func() float64 { return s.pull(ctx, t, s.reference10M, 10*time.Second).BitsPerSecond / 1e6 },
		"netperf TCP_MAERTS": func() float64 { return s.maerts(ctx, t, s.reference10M, 10*time.Second) },
	} {
		mbps := atLeast(low, measure)
		s.results.add(row{step: "reference", what: what + ", from the other node", asked: "10M", limit: "10M", mbps: mbps, note: kept.Mode})
		wantWithin(t, mbps, low, high)
	}
}

// inspect: an operator calls list and status.
func (s *suite) inspect(ctx context.Context, t *testing.T) {
	kept := s.awaitEnforced(ctx, t, s.reference10M, "10M")
	if len(kept.Devices) != 1 {
		t.Fatalf("list shows %d devices of the pod: %+v", len(kept.Devices), kept.Devices)
	}
	for _, look := range []struct {
		args []string
		want []string
	}{
		{[]string{"list"}, []string{"POD", "DEVICE", "LIMIT", "MODE", "RATE NOW", "team-a/reference", kept.Devices[0].Name, " 10M ", kept.Mode}},
		{[]string{"status"}, []string{"Mode: " + kept.Mode, "Agent: running since", "pods from API server", "Pods: 1 limited, 1 enforced", "eth0"}},
	} {
		out, err := s.enforcer(ctx, "node1", look.args...)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range look.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not show %q:\n%s", look.args[0], want, out)
			}
		}
		fmt.Printf("\n$ kubectl exec ... -- kubepace-enforcer %s\n%s\n", strings.Join(look.args, " "), out)
	}
	s.results.add(row{step: "inspect", what: "list and status by kubectl exec", asked: "10M", limit: "10M", note: kept.Mode + " on " + kept.Devices[0].Name})
}
