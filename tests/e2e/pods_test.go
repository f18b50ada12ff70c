// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/demo/iperf"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// pod is a running pod.
type pod struct {
	namespace, name, node, ip, egress string
}

// podSpec is what a pod's author writes. Every pod is an iperf3 server.
type podSpec struct {
	namespace, name string
	node            string // empty: wherever the scheduler wants
	egress          string // empty: no annotation
}

func (p podSpec) object() *corev1.Pod {
	now := int64(0)
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{
				Name: "iperf3", Image: "kubepace.test/iperf3:e2e", Args: []string{"-s"},
				// On iperf3's account: it listens a moment after it started.
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"iperf3", "--version"}}},
					PeriodSeconds: 1,
				},
			}},
		},
	}
	if p.node != "" {
		object.Spec.NodeSelector = map[string]string{corev1.LabelHostname: p.node}
	}
	if p.egress != "" {
		object.Annotations = map[string]string{bandwidth.AnnotationEgress: p.egress}
	}
	return object
}

// create creates a pod and waits until it is ready.
func (s *suite) create(ctx context.Context, t *testing.T, spec podSpec) pod {
	t.Helper()
	if _, err := s.Client.CoreV1().Pods(spec.namespace).Create(ctx, spec.object(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return s.awaitReady(ctx, t, spec.namespace, spec.name)
}

func (s *suite) awaitReady(ctx context.Context, t *testing.T, namespace, name string) pod {
	t.Helper()
	var got pod
	err := cluster.Poll(ctx, time.Minute, func(ctx context.Context) error {
		object, err := s.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range object.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				got = pod{namespace, name, object.Spec.NodeName, object.Status.PodIP, object.Annotations[bandwidth.AnnotationEgress]}
				return nil
			}
		}
		return fmt.Errorf("pod %s/%s is not ready: %s", namespace, name, object.Status.Phase)
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.describe(ctx, namespace, "pod/"+name))
	}
	return got
}

func (s *suite) namespace(ctx context.Context, t *testing.T, name string, labels map[string]string) {
	t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Pods want its service account.
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := s.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *suite) deleteNamespace(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	s.kubectl(ctx, t, "delete", "namespace", name, "--wait", "--timeout=60s")
}

// pull lets the client receive from the pod, by iperf3 -R: what netperf calls TCP_MAERTS.
func (s *suite) pull(ctx context.Context, t *testing.T, from pod, length time.Duration, more ...string) iperf.Received {
	t.Helper()
	args := []string{"-n", s.clientPod.namespace, "exec", s.clientPod.name, "--",
		"iperf3", "-c", from.ip, "-R", "-J", "-t", strconv.Itoa(int(length.Seconds()))}
	got, err := iperf.Parse([]byte(s.kubectl(ctx, t, append(args, more...)...)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (s *suite) wantWithin(t *testing.T, got iperf.Received, low, high float64) {
	t.Helper()
	if mbps := got.BitsPerSecond / 1e6; mbps < low || mbps > high {
		t.Errorf("%.2f Mbit/s at the client; want %.1f to %.1f", mbps, low, high)
	}
}

// listed is what `kubepace-enforcer list -o json` says of a pod.
type listed struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Limit     string `json:"limit"`
	Mode      string `json:"mode"`
	Enforced  bool   `json:"enforced"`
	Reason    string `json:"reason"`
}

// list asks the enforcer of a node, as an operator does.
func (s *suite) list(ctx context.Context, node string) ([]listed, error) {
	out, err := s.enforcer(ctx, node, "list", "-o", "json", "--interval=100ms")
	if err != nil {
		return nil, err
	}
	var got struct {
		Pods []listed `json:"pods"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return nil, fmt.Errorf("read list: %w: %s", err, out)
	}
	return got.Pods, nil
}

// enforcer runs kubepace-enforcer in the agent's pod of a node.
func (s *suite) enforcer(ctx context.Context, node string, args ...string) (string, error) {
	name, err := s.agent(ctx, node)
	if err != nil {
		return "", err
	}
	return s.Kubectl(ctx, append([]string{"-n", system, "exec", name, "--", "/kubepace-enforcer"}, args...)...)
}

// agent is the name of the agent's pod on a node.
func (s *suite) agent(ctx context.Context, node string) (string, error) {
	name, err := s.Kubectl(ctx, "-n", system, "get", "pods", "-l", "app.kubernetes.io/name=kubepace-enforcer",
		"--field-selector", "spec.nodeName="+node+",status.phase=Running", "-o", "name")
	if err != nil {
		return "", err
	}
	if name = strings.TrimSpace(name); name == "" || strings.Contains(name, "\n") {
		return "", fmt.Errorf("agents on %s: %q", node, name)
	}
	return name, nil
}

// awaitEnforced waits until the pod's node says that it keeps the limit.
func (s *suite) awaitEnforced(ctx context.Context, t *testing.T, p pod, limit string) {
	t.Helper()
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		pods, err := s.list(ctx, p.node)
		if err != nil {
			return err
		}
		for _, l := range pods {
			if l.Namespace == p.namespace && l.Pod == p.name && l.Enforced && l.Limit == limit {
				return nil
			}
		}
		return fmt.Errorf("%s does not keep %s for %s/%s: %+v", p.node, limit, p.namespace, p.name, pods)
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
}

// kubectl fails the test where kubectl fails.
func (s *suite) kubectl(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// diagnose is what an operator would look at next.
func (s *suite) diagnose(ctx context.Context) string {
	out := s.describe(ctx, system, "pods")
	for _, app := range []string{"kubepace-webhook", "kubepace-enforcer"} {
		// What can't be had is no news here.
		logs, _ := s.Kubectl(ctx, "-n", system, "logs", "-l", "app.kubernetes.io/name="+app, "--tail=20", "--prefix")
		out += logs
	}
	return out
}

func (s *suite) describe(ctx context.Context, namespace, what string) string {
	out, err := s.Kubectl(ctx, "-n", namespace, "describe", what)
	if err != nil {
		return err.Error()
	}
	return out
}

// vxlanBytes is how much the node has sent by VXLAN.
func (s *suite) vxlanBytes(ctx context.Context, t *testing.T, node *cluster.Node) int64 {
	t.Helper()
	out, err := node.Output(ctx, "ip", "-j", "-s", "link", "show", "flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Stats struct {
			TX struct {
				Bytes int64 `json:"bytes"`
			} `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("read flannel.1: %v: %s", err, out)
	}
	return links[0].Stats.TX.Bytes
}
