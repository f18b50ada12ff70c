// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/demo/iperf"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
	"github.com/kubepace/kubepace/tests/e2e/trace"
)

// transfer is a pull in the background, and what node2 saw of it: every byte that came from the other node's pods.
type transfer struct {
	pulled  chan error
	got     iperf.Received
	stop    context.CancelFunc
	watched chan error
	trace   trace.Trace
}

// startPull starts a pull and returns once bytes arrive.
func (s *suite) startPull(ctx context.Context, t *testing.T, from pod, length time.Duration) *transfer {
	t.Helper()
	return s.startTransfer(ctx, t, func(ctx context.Context) (iperf.Received, error) { return s.tryPull(ctx, from, length) })
}

// pullByNode is a pull of node2 itself, which needs no kubectl, and so no API server.
func (s *suite) pullByNode(ctx context.Context, from pod, length time.Duration) (iperf.Received, error) {
	out, err := s.Nodes[1].Output(ctx, "iperf3", "-c", from.ip, "-R", "-C", "cubic", "-J", "-t", strconv.Itoa(int(length.Seconds())))
	if err != nil {
		return iperf.Received{}, fmt.Errorf("%w: %s", err, out)
	}
	return iperf.Parse([]byte(out))
}

// startTransfer starts a transfer to node2 and returns once bytes arrive.
func (s *suite) startTransfer(ctx context.Context, t *testing.T, pull func(context.Context) (iperf.Received, error)) *transfer {
	t.Helper()
	watching, stop := context.WithCancel(ctx)
	x := &transfer{pulled: make(chan error, 1), stop: stop, watched: make(chan error, 1)}
	flows := make(chan struct{})
	go func() {
		var err error
		x.got, err = pull(ctx)
		x.pulled <- err
	}()
	go func() { x.watched <- x.watch(watching, s.Nodes[1], flows) }()
	t.Cleanup(stop)
	select {
	case <-flows:
	case err := <-x.pulled:
		t.Fatalf("the transfer ended before it began: %v", err)
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	return x
}

// watch reads node2's counter until ctx ends. It closes flows once data arrives, which is more than a handshake.
func (x *transfer) watch(ctx context.Context, node *cluster.Node, flows chan<- struct{}) error {
	const handshake = 20_000
	for {
		before := time.Now()
		bytes, _, err := node.LinkBytes("flannel.1")
		if err != nil {
			return err
		}
		x.trace = append(x.trace, trace.Sample{Before: before, After: time.Now(), Bytes: bytes})
		if flows != nil && bytes-x.trace[0].Bytes > handshake {
			close(flows)
			flows = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end waits until the transfer is over.
func (x *transfer) end(t *testing.T) {
	t.Helper()
	err := <-x.pulled
	x.stop()
	if err := errors.Join(err, <-x.watched); err != nil {
		t.Fatal(err)
	}
}

// Silence that is longer than this is a stall. Policed TCP is silent for a retransmission timeout now and then, and on a busy
// machine of two processors whoever reads or sends may have to wait as well.
const stall = time.Second

// wantHeld wants the transfer never over its limit, whatever window one looks at, and never at a standstill.
func (s *suite) wantHeld(t *testing.T, x *transfer, kept listed) string {
	t.Helper()
	const slack = 64 << 10
	burst := slack + int64(float64(kept.LimitBPS)/8*kept.HorizonMs/1000)
	excess, silence := x.trace.Excess(kept.LimitBPS), x.trace.Silence()
	if excess > burst {
		t.Errorf("%d bytes over limit × t in some window; want at most %d (64 KB + limit × horizon of %g ms)", excess, burst, kept.HorizonMs)
	}
	if silence > stall {
		t.Errorf("nothing arrived for %v", silence)
	}
	return fmt.Sprintf("at most %d KB over limit × t in any window (%d allowed), longest silence %d ms", excess>>10, burst>>10, silence.Milliseconds())
}

// live: a limit that is changed while the pod sends holds from then on.
func (s *suite) live(ctx context.Context, t *testing.T) {
	server := s.create(ctx, t, podSpec{namespace: "team-a", name: "live", node: "node1", egress: "10M"})
	s.awaitEnforced(ctx, t, server, "10M")
	x := s.startPull(ctx, t, server, 14*time.Second)
	began := time.Now()
	time.Sleep(5 * time.Second)
	s.kubectl(ctx, t, "-n", "team-a", "annotate", "pod", "live", "--overwrite", bandwidth.AnnotationEgress+"=20M")
	s.awaitEnforced(ctx, t, server, "20M")
	changed := time.Now()
	x.end(t)
	// The burst at the beginning and what TCP needs to find the new rate do not count.
	first, second := x.trace.Rate(began.Add(time.Second), began.Add(5*time.Second))/1e6, x.trace.Rate(changed.Add(time.Second), changed.Add(6*time.Second))/1e6
	for _, c := range []struct{ got, want float64 }{{first, 10}, {second, 20}} {
		if c.got < 0.85*c.want || c.got > 1.05*c.want {
			t.Errorf("%.2f Mbit/s on the wire at a limit of %g", c.got, c.want)
		}
	}
	s.results.add(row{step: "live", what: "10M, changed to 20M while it sends", asked: "20M", limit: "20M",
		note: fmt.Sprintf("%.2f, then %.2f on the wire", first, second)})
	s.kubectl(ctx, t, "-n", "team-a", "delete", "pod", "live", "--wait")
}

// agentRestart: an agent that is replaced, and one that is killed, leave the limit in force throughout.
func (s *suite) agentRestart(ctx context.Context, t *testing.T) {
	server := s.reference10M
	kept := s.awaitEnforced(ctx, t, server, "10M")
	x := s.startPull(ctx, t, server, 40*time.Second)
	former, err := s.agent(ctx, server.node)
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl(ctx, t, "-n", system, "delete", former, "--wait")
	s.awaitAgent(ctx, t, server.node, func(p *corev1.Pod) bool { return "pod/"+p.Name != former })
	if err := s.Nodes[0].KillProcess("/kubepace-enforcer", "run"); err != nil {
		t.Fatal(err)
	}
	s.awaitAgent(ctx, t, server.node, func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount > 0 })
	over := false
	select {
	case err := <-x.pulled:
		x.pulled <- err
		over = true
	default:
	}
	x.end(t)
	if over {
		t.Error("the agents took longer than the transfer: nothing was seen of it")
	}
	note := s.wantHeld(t, x, kept)
	s.results.add(row{step: "agent-restart", what: "its pod deleted, then SIGKILL, while it sends", asked: "10M", limit: "10M",
		mbps: x.got.BitsPerSecond / 1e6, note: note})
	s.awaitEnforced(ctx, t, server, "10M")
}

// awaitAgent waits until the node has one agent, ready and new.
func (s *suite) awaitAgent(ctx context.Context, t *testing.T, node string, isNew func(*corev1.Pod) bool) {
	t.Helper()
	err := cluster.Poll(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := s.Client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/name=kubepace-enforcer", FieldSelector: "spec.nodeName=" + node,
		})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d agents on %s", len(pods.Items), node)
		}
		if p := &pods.Items[0]; !podReady(p) || !isNew(p) {
			return fmt.Errorf("agent %s is not ready and new", p.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
}

// nodePrograms: kubelet and containerd may be killed as well.
func (s *suite) nodePrograms(ctx context.Context, t *testing.T) {
	server := s.reference10M
	kept := s.awaitEnforced(ctx, t, server, "10M")
	x := s.startPull(ctx, t, server, 12*time.Second)
	if err := s.Nodes[0].Kill(ctx, "kubelet", "containerd"); err != nil {
		t.Fatal(err)
	}
	x.end(t)
	note := s.wantHeld(t, x, kept)
	s.results.add(row{step: "node-programs", what: "kubelet and containerd killed while it sends", asked: "10M", limit: "10M",
		mbps: x.got.BitsPerSecond / 1e6, note: note})
	s.awaitEnforced(ctx, t, server, "10M") // by kubectl exec: both are back
}

// outage: while nobody answers at the API server a limit stays, also under an agent that has never seen the API server; what
// changes afterwards is followed as ever.
func (s *suite) outage(ctx context.Context, t *testing.T) {
	const away = 25 * time.Second // less than after which a node counts as lost
	server := s.reference10M
	node := s.Nodes[0]
	kept := s.awaitEnforced(ctx, t, server, "10M")
	former, err := s.agent(ctx, server.node)
	if err != nil {
		t.Fatal(err)
	}
	x := s.startTransfer(ctx, t, func(ctx context.Context) (iperf.Received, error) {
		return s.pullByNode(ctx, server, cluster.Within(away)+5*time.Second)
	})
	if err := s.FreezeAPI(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.ThawAPI() }() // where the step ends early; twice does no harm
	frozen := time.Now()
	if err := node.KillProcess("/kubepace-enforcer", "run"); err != nil {
		t.Fatal(err)
	}
	// The kubelet starts it again. It is asked on the node itself: kubectl exec goes by the API server.
	err = cluster.Poll(ctx, away-5*time.Second, func(ctx context.Context) error {
		out, err := node.Output(ctx, s.enforcerFile, "status", "-o", "json")
		if err != nil {
			return err
		}
		var status struct {
			Agent struct {
				Running, Synced bool
				Started         time.Time
			}
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("read status: %w: %s", err, out)
		}
		if a := status.Agent; !a.Running || a.Synced || a.Started.Before(frozen.Truncate(time.Second)) {
			return fmt.Errorf("no agent that has started since: %+v", a)
		}
		if out, err = node.Output(ctx, s.enforcerFile, "list", "-o", "json", "--interval=100ms"); err != nil {
			return err
		}
		pods, err := parseList(out)
		if err != nil {
			return err
		}
		if len(pods) != 1 || pods[0].Pod != server.name || pods[0].LimitBPS != kept.LimitBPS || len(pods[0].Devices) != 1 {
			return fmt.Errorf("the node's list without the API server: %+v", pods)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	time.Sleep(time.Until(frozen.Add(cluster.Within(away))))
	if err := s.ThawAPI(); err != nil {
		t.Fatal(err)
	}
	x.end(t)
	note := s.wantHeld(t, x, kept)
	s.awaitAgent(ctx, t, server.node, func(p *corev1.Pod) bool { return "pod/"+p.Name == former })
	for _, limit := range []string{"12M", "10M"} {
		s.kubectl(ctx, t, "-n", server.namespace, "annotate", "pod", server.name, "--overwrite", bandwidth.AnnotationEgress+"="+limit)
		kept = s.awaitEnforced(ctx, t, server, limit)
	}
	s.results.add(row{step: "outage", what: "the API server frozen, the agent killed meanwhile", asked: "10M", limit: kept.Limit,
		mbps: x.got.BitsPerSecond / 1e6, note: note})
}

// deletion: nothing is left of a pod that is gone.
func (s *suite) deletion(ctx context.Context, t *testing.T) {
	pins := func() string {
		out, err := s.Nodes[0].Output(ctx, "sh", "-c", "find /sys/fs/bpf -mindepth 1 | sort")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// Pods of earlier steps go a moment after their namespaces.
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		pods, err := s.list(ctx, "node1")
		if err == nil && len(pods) != 1 {
			err = fmt.Errorf("node1 lists %+v; want the reference pod alone", pods)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before := pins()
	server := s.create(ctx, t, podSpec{namespace: "team-a", name: "short", node: "node1", egress: "10M"})
	s.awaitEnforced(ctx, t, server, "10M")
	s.kubectl(ctx, t, "-n", "team-a", "delete", "pod", "short", "--wait")
	err = cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		l, err := s.find(ctx, server)
		if err == nil && l != nil {
			err = fmt.Errorf("node1 still lists the pod: %+v", *l)
		}
		if now := pins(); err == nil && now != before {
			err = fmt.Errorf("pins before the pod:\n%s\nand after it:\n%s", before, now)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	s.results.add(row{step: "deletion", what: "a pod comes and goes", asked: "10M", limit: "none", note: "no pin, no line in list"})
}
