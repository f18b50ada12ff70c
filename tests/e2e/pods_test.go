// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
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
	namespace, name, node, ip string
	annotations               map[string]string
}

// podSpec is what a pod's author writes. Every pod is an iperf3 server.
type podSpec struct {
	namespace, name string
	node            string // empty: wherever the scheduler wants
	egress          string // empty: no annotation
	hostNetwork     bool
	netperf         bool // a netserver beside iperf3
}

func (p podSpec) object() *corev1.Pod {
	now := int64(0)
	// For iperf3 -C and netperf -K.
	mayChoose := &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name},
		Spec: corev1.PodSpec{
			HostNetwork:                   p.hostNetwork,
			TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{
				Name: "iperf3", Image: "kubepace.test/iperf3:e2e", Args: []string{"-s"}, SecurityContext: mayChoose,
			}},
		},
	}
	if p.netperf {
		object.Spec.Containers = append(object.Spec.Containers, corev1.Container{
			Name: "netperf", Image: "kubepace.test/netperf:e2e", Args: []string{"-D"}, SecurityContext: mayChoose,
		})
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
		if !podReady(object) {
			return fmt.Errorf("pod %s/%s is not ready: %s", namespace, name, object.Status.Phase)
		}
		got = pod{namespace, name, object.Spec.NodeName, object.Status.PodIP, object.Annotations}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.describe(ctx, namespace, "pod/"+name))
	}
	return got
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
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
	s.kubectl(ctx, t, "delete", "namespace", name, "--wait", timeout(60*time.Second))
}

// pull lets the client receive from the pod, by iperf3 -R: what netperf calls TCP_MAERTS.
func (s *suite) pull(ctx context.Context, t *testing.T, from pod, length time.Duration) iperf.Received {
	t.Helper()
	got, err := s.tryPull(ctx, from, length)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// tryPull lets the pod send by cubic, which most kernels choose by themselves; some prefer bbr. It tries again where iperf3 does not listen yet: a container is ready when it has started.
func (s *suite) tryPull(ctx context.Context, from pod, length time.Duration) (got iperf.Received, err error) {
	var fatal error
	err = cluster.Poll(ctx, length+30*time.Second, func(ctx context.Context) error {
		out, err := s.Kubectl(ctx, "-n", s.clientPod.namespace, "exec", s.clientPod.name, "--",
			"iperf3", "-c", from.ip, "-R", "-C", "cubic", "-J", "-t", strconv.Itoa(int(length.Seconds())))
		if err != nil && strings.Contains(out, "unable to connect") {
			return err
		}
		if fatal = err; err == nil {
			got, fatal = iperf.Parse([]byte(out))
		} else if out != "" {
			fatal = fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return got, errors.Join(err, fatal)
}

// maerts is netperf's own test of receiving, in Mbit/s.
func (s *suite) maerts(ctx context.Context, t *testing.T, from pod, length time.Duration) float64 {
	t.Helper()
	out := s.kubectl(ctx, t, "-n", s.clientPod.namespace, "exec", s.clientPod.name, "-c", "netperf", "--",
		"/usr/bin/netperf", "-H", from.ip, "-t", "TCP_MAERTS", "-l", strconv.Itoa(int(length.Seconds())), "-P", "0", "--", "-K", "cubic,cubic")
	fields := strings.Fields(out)
	if len(fields) == 0 {
		t.Fatalf("netperf says nothing")
	}
	mbps, err := strconv.ParseFloat(fields[len(fields)-1], 64)
	if err != nil {
		t.Fatalf("read netperf's result: %v: %s", err, out)
	}
	return mbps
}

// atLeast measures again, twice at most, where too little came: a machine that is busy elsewhere delivers less than a limit, and
// never more. What is above a limit is never tried again.
func atLeast(low float64, measure func() float64) float64 {
	mbps := measure()
	for again := 0; mbps < low && again < 2; again++ {
		say("  %.2f Mbit/s where %.2f are expected at least: once more", mbps, low)
		mbps = measure()
	}
	return mbps
}

func wantWithin(t *testing.T, mbps, low, high float64) {
	t.Helper()
	if mbps < low || mbps > high {
		t.Errorf("%.2f Mbit/s at the client; want %.1f to %.1f", mbps, low, high)
	}
}

// timeout is kubectl's flag.
func timeout(limit time.Duration) string { return "--timeout=" + cluster.Within(limit).String() }

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
