// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/demo/iperf"
	"github.com/kubepace/kubepace/tests/demo/node"
	"github.com/kubepace/kubepace/tests/demo/result"
)

// pod is one pod of the demonstration and what became of it.
type pod struct {
	result.Pod
	labels   map[string]string // of its namespace
	net      node.Pod
	received iperf.Received
}

func newPods() []*pod {
	return []*pod{
		{Pod: result.Pod{
			Pod: "reference", Namespace: "team-a", Asked: "10M",
			WantAdmitted: "10M", WantSource: bandwidth.SourcePod,
		}},
		{Pod: result.Pod{
			Pod: "unasked", Namespace: "team-b",
			WantAdmitted: "25M", WantSource: bandwidth.SourceNamespaceDefault,
		}, labels: map[string]string{bandwidth.LabelDefault: "25M"}},
		{Pod: result.Pod{
			Pod: "greedy", Namespace: "team-c", Asked: "1G",
			WantAdmitted: "50M", WantSource: bandwidth.SourceCapped,
		}, labels: map[string]string{bandwidth.LabelMax: "50M"}},
		{Pod: result.Pod{Pod: "wordy", Namespace: "team-a", Asked: "10 megabits"}},
	}
}

// createPods creates the node, the namespaces and the pods through the API, and then does what a kubelet does.
func (d *demo) createPods(ctx context.Context) error {
	machine := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/hostname": nodeName}}}
	if _, err := d.client.CoreV1().Nodes().Create(ctx, machine, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create node: %w", err)
	}
	for _, p := range d.pods {
		if err := d.createNamespace(ctx, p); err != nil {
			return err
		}
	}
	if err := d.awaitAdmission(ctx, d.pods[0].Namespace); err != nil {
		return err
	}
	for _, p := range d.pods {
		if err := d.createPod(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) createNamespace(ctx context.Context, p *pod) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.Namespace, Labels: p.labels}}
	if _, err := d.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("create namespace %s: %w", p.Namespace, err)
	}
	// A controller makes this account in a whole cluster; kube-apiserver admits no pod without it.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := d.client.CoreV1().ServiceAccounts(p.Namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create service account in %s: %w", p.Namespace, err)
	}
	for key, value := range p.labels {
		d.say("namespace %s, labelled %s=%s", p.Namespace, key, value)
	}
	return nil
}

func (d *demo) createPod(ctx context.Context, p *pod) error {
	asks := "asks for nothing"
	if p.Asked != "" {
		asks = fmt.Sprintf("asks for %q", p.Asked)
	}
	var heard warnings
	client, err := d.clientWith(&heard)
	if err != nil {
		return err
	}
	created, err := client.CoreV1().Pods(p.Namespace).Create(ctx, senderPod(p.Pod.Pod, p.Asked), metav1.CreateOptions{})
	if err != nil {
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
			return fmt.Errorf("create pod %s/%s: %w", p.Namespace, p.Pod.Pod, err)
		}
		p.Refused, p.Message = true, err.Error()
		d.say("pod %s/%s %s: REFUSED\n            %s", p.Namespace, p.Pod.Pod, asks, p.Message)
		return nil
	}
	p.Admitted, p.Source = created.Annotations[bandwidth.AnnotationEgress], created.Annotations[bandwidth.AnnotationSource]
	d.say("pod %s/%s %s: admitted with %s (%s)", p.Namespace, p.Pod.Pod, asks, p.Admitted, p.Source)
	for _, text := range heard.all() {
		fmt.Printf("            Warning: %s\n", text)
	}
	return d.actAsKubelet(ctx, p, created)
}

// actAsKubelet gives the pod its network and says so in its status.
func (d *demo) actAsKubelet(ctx context.Context, p *pod, created *corev1.Pod) error {
	var err error
	if p.net, err = d.node.AddPod(p.Namespace + "-" + p.Pod.Pod); err != nil {
		return fmt.Errorf("network of pod %s/%s: %w", p.Namespace, p.Pod.Pod, err)
	}
	created.Status.Phase = corev1.PodRunning
	created.Status.HostIP = node.IP.String()
	created.Status.PodIP = p.net.IP.String()
	created.Status.PodIPs = []corev1.PodIP{{IP: p.net.IP.String()}}
	if _, err := d.client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("report pod %s/%s running: %w", p.Namespace, p.Pod.Pod, err)
	}
	return nil
}

// clientWith is a client that hands the API's warnings to heard, as kubectl shows them to the person who typed.
func (d *demo) clientWith(heard *warnings) (*kubernetes.Clientset, error) {
	config := rest.CopyConfig(d.plane.Admin)
	config.WarningHandler = heard
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return client, nil
}

// warnings collects what the API server warns of.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

var _ rest.WarningHandler = (*warnings)(nil)

// HandleWarningHeader is rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.texts
}
