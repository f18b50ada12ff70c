// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/demo/manifest"
	"github.com/kubepace/kubepace/tests/demo/plane"
	"github.com/kubepace/kubepace/tests/process"
)

const (
	webhookURL    = "https://127.0.0.1:9443"
	webhookHealth = "127.0.0.1:8081"
)

// installKubepace applies the manifests and runs the programs as they say, each as its own service account.
func (d *demo) installKubepace(ctx context.Context) error {
	objects, err := manifest.Load(d.manifests)
	if err != nil {
		return err
	}
	if err := manifest.PointWebhooks(objects, webhookURL); err != nil {
		return err
	}
	if err := manifest.Apply(ctx, d.plane.Admin, objects); err != nil {
		return err
	}
	d.say("applied the %d objects of the manifests; the webhooks are called at %s", len(objects), webhookURL)
	env := map[string]string{"NODE_NAME": nodeName}
	webhook, err := manifest.FindProgram(objects, "webhook", env)
	if err != nil {
		return err
	}
	enforcer, err := manifest.FindProgram(objects, "enforcer", env)
	if err != nil {
		return err
	}
	hook, err := d.startProgram(ctx, "kubepace-webhook", webhook,
		"--listen-address=127.0.0.1", "--extra-ips=127.0.0.1", "--health-address="+webhookHealth, "--metrics-address=0")
	if err != nil {
		return err
	}
	if d.enforcer, err = d.startProgram(ctx, "kubepace-enforcer", enforcer); err != nil {
		return err
	}
	stop := d.heartbeat("kubepace-webhook")
	defer stop()
	ready := func(ctx context.Context) error { return plane.Answers(ctx, "http://"+webhookHealth+"/readyz") }
	if err := hook.Await(ctx, ready); err != nil {
		return err
	}
	d.say("kubepace-webhook is ready, with certificates that it issued itself")
	return nil
}

// startProgram runs a binary with the arguments of its manifest, and more after them, as its service account.
func (d *demo) startProgram(ctx context.Context, binary string, program manifest.Program, more ...string) (*process.Process, error) {
	kubeconfig, err := d.plane.Kubeconfig(ctx, program.Namespace, program.ServiceAccount)
	if err != nil {
		return nil, err
	}
	args := slices.Concat(program.Args, []string{"--kubeconfig=" + kubeconfig}, more)
	d.say("starting %s as service account %s", binary, program.ServiceAccount)
	return process.Start(binary, filepath.Join(d.logs, binary+".log"), nil, filepath.Join(d.bin, binary), args...)
}

// awaitAdmission waits until kube-apiserver has heard of the webhooks and their certificates and calls them. A pod
// that is not kept tells: its limit comes back rewritten.
func (d *demo) awaitAdmission(ctx context.Context, namespace string) error {
	probe := senderPod("probe", "1.5M")
	for {
		got, err := d.client.CoreV1().Pods(namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && got.Annotations[bandwidth.AnnotationEgress] == "1500k" {
			d.say("kube-apiserver calls the webhooks")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver does not call the webhook: annotations %v: %w", got.GetAnnotations(), errors.Join(err, context.Cause(ctx)))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// listed is what this demonstration reads of one entry of `kubepace-enforcer list -o json`.
type listed struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	LimitBPS  int64  `json:"limit_bps"`
	Mode      string `json:"mode"`
	Enforced  bool   `json:"enforced"`
	Reason    string `json:"reason"`
}

// awaitEnforcement waits until the kernel holds a limit for every admitted pod, by the enforcer's own list.
func (d *demo) awaitEnforcement(ctx context.Context) error {
	stop := d.heartbeat("kubepace-enforcer")
	defer stop()
	err := d.enforcer.Await(ctx, func(ctx context.Context) error {
		output, err := exec.CommandContext(ctx, filepath.Join(d.bin, "kubepace-enforcer"), "list", "-o", "json", "--interval=0").Output()
		if err != nil {
			return fmt.Errorf("kubepace-enforcer list: %w: %s", err, stderrOf(err))
		}
		return d.matchList(output)
	})
	if err != nil {
		return err
	}
	d.say("kubepace-enforcer has put every limit into the kernel")
	return nil
}

// matchList notes limit and mode of every admitted pod, and says which are missing.
func (d *demo) matchList(output []byte) error {
	var entries []listed
	if err := json.Unmarshal(output, &entries); err != nil {
		return fmt.Errorf("read kubepace-enforcer list: %w", err)
	}
	var missing []string
	for _, p := range d.admitted() {
		i := slices.IndexFunc(entries, func(e listed) bool { return e.Namespace == p.Namespace && e.Pod == p.Pod.Pod })
		switch {
		case i < 0:
			missing = append(missing, p.Namespace+"/"+p.Pod.Pod)
		case !entries[i].Enforced:
			missing = append(missing, fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Pod.Pod, entries[i].Reason))
		default:
			p.LimitBPS, p.Mode = entries[i].LimitBPS, entries[i].Mode
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not enforced: %s", strings.Join(missing, ", "))
	}
	return nil
}

// showList prints the enforcer's own view while the pods send.
func (d *demo) showList(ctx context.Context) error { return d.show(ctx, "list") }

// showStatus prints mode, features and devices of the node.
func (d *demo) showStatus(ctx context.Context) error { return d.show(ctx, "status") }

func (d *demo) show(ctx context.Context, command string) error {
	output, err := exec.CommandContext(ctx, filepath.Join(d.bin, "kubepace-enforcer"), command).Output()
	if err != nil {
		return fmt.Errorf("kubepace-enforcer %s: %w: %s", command, err, stderrOf(err))
	}
	d.say("kubepace-enforcer %s:", command)
	for line := range strings.Lines(string(output)) {
		fmt.Fprint(os.Stdout, "            ", line)
	}
	return nil
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

// senderPod is a pod bound to the demo's node.
func senderPod(name, asks string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:   nodeName,
			Containers: []corev1.Container{{Name: "sender", Image: "example.com/sender:1"}},
		},
	}
	if asks != "" {
		pod.Annotations = map[string]string{bandwidth.AnnotationEgress: asks}
	}
	return pod
}
