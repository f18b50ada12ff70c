// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const benchNamespace = "bench"

// plane is a real kube-apiserver and etcd, without anything that acts by itself.
type plane struct {
	env    *envtest.Environment
	config *rest.Config // of an administrator, without client-side limits
	client kubernetes.Interface
}

func startPlane(ctx context.Context) (*plane, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS is not set: see tests/kube/build.sh")
	}
	p := &plane{env: &envtest.Environment{ControlPlaneStartTimeout: patience, ControlPlaneStopTimeout: patience}}
	arguments := p.env.ControlPlane.GetAPIServer().Configure()
	// A thousand agents that are one process have one user: their fair share would be one agent's.
	arguments.Set("enable-priority-and-fairness", "false").Set("max-requests-inflight", "4000").Set("max-mutating-requests-inflight", "4000")
	var err error
	if p.config, err = p.env.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the control plane: %w", err), p.stop())
	}
	p.config.QPS = -1
	config := rest.CopyConfig(p.config)
	config.ContentType = runtime.ContentTypeProtobuf
	if p.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	for _, name := range []string{benchNamespace, "kubepace-system"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := p.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			return nil, errors.Join(fmt.Errorf("create namespace: %w", err), p.stop())
		}
	}
	return p, nil
}

func (p *plane) stop() error { return p.env.Stop() }

func (p *plane) createNode(ctx context.Context, name string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := p.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create node %s: %w", name, err)
	}
	return nil
}

// bindPod makes a pod as a scheduler leaves it.
func (p *plane) bindPod(ctx context.Context, name, node string) (*corev1.Pod, error) {
	created, err := p.client.CoreV1().Pods(benchNamespace).Create(ctx, usualPod(name, node), metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", name, err)
	}
	return created, nil
}

// report is what a kubelet writes once the pod runs.
func (p *plane) report(ctx context.Context, pod *corev1.Pod, addr string) error {
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: addr, PodIPs: []corev1.PodIP{{IP: addr}}, HostIP: "192.0.2.2",
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
			{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue},
		},
	}
	for _, c := range pod.Spec.Containers {
		started := true
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: c.Image + "@sha256:" + strings.Repeat("a", 64), Ready: true, Started: &started,
			ContainerID: "containerd://" + strings.Repeat("b", 64),
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		})
	}
	// A patch, as the kubelet's: by now the agent may have written its condition.
	patch, err := json.Marshal(map[string]any{"status": pod.Status})
	if err != nil {
		return fmt.Errorf("encode status of pod %s: %w", pod.Name, err)
	}
	if _, err := p.client.CoreV1().Pods(benchNamespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("patch status of pod %s: %w", pod.Name, err)
	}
	return nil
}

// usualPod is as large as pods are: two containers with probes, environment and volumes.
func usualPod(name, node string) *corev1.Pod {
	container := func(name string) corev1.Container {
		c := corev1.Container{
			Name: name, Image: "registry.invalid/team/" + name + ":v1.2.3", Args: []string{"--config=/etc/app/config.yaml", "--listen=:8080"},
			Ports:        []corev1.ContainerPort{{ContainerPort: 8080}},
			VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/app"}, {Name: "scratch", MountPath: "/tmp"}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
			}},
		}
		for i := range 10 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", i), Value: strings.Repeat("v", 40)})
		}
		return c
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: benchNamespace,
			Labels:      map[string]string{"app.kubernetes.io/name": "shop", "app.kubernetes.io/version": "1.2.3", "pod-template-hash": "6d4cf56db6"},
			Annotations: map[string]string{"kubernetes.io/egress-bandwidth": "10M", "checksum/config": strings.Repeat("c", 64)},
		},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{container("main"), container("sidecar")},
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "shop"}}}},
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
		},
	}
}

// deletePod is what the kubelet does when all of a pod has ended.
func (p *plane) deletePod(ctx context.Context, name string) error {
	now := int64(0)
	if err := p.client.CoreV1().Pods(benchNamespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return fmt.Errorf("delete pod %s: %w", name, err)
	}
	return nil
}

// door is where an agent in its network namespace reaches the API server; it counts what goes through.
type door struct {
	listener net.Listener
	target   string
	up, down atomic.Int64 // bytes to the API server, and from it
	running  sync.WaitGroup
}

// openDoor listens on the loopback device of the world's node, and writes the agent's kubeconfig.
func openDoor(w *world, p *plane, kubeconfig string) (*door, error) {
	d := &door{target: p.config.Host}
	d.target = strings.TrimSuffix(strings.TrimPrefix(d.target, "https://"), "/")
	err := w.Do(func() (err error) {
		d.listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for the agent: %w", err)
	}
	d.running.Go(d.serve)
	config, err := clientcmd.Load(p.env.KubeConfig)
	if err != nil {
		return d, fmt.Errorf("read kubeconfig: %w", err)
	}
	for _, cluster := range config.Clusters {
		cluster.Server = "https://" + d.listener.Addr().String()
	}
	return d, clientcmd.WriteToFile(*config, kubeconfig)
}

func (d *door) serve() {
	for {
		in, err := d.listener.Accept()
		if err != nil {
			return // closed
		}
		out, err := net.Dial("tcp", d.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		d.running.Go(func() { pipe(out, in, &d.up) })
		d.running.Go(func() { pipe(in, out, &d.down) })
	}
}

// pipe copies one direction and then closes both.
func pipe(to, from net.Conn, bytes *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	_, _ = io.Copy(io.MultiWriter(to, counter{bytes}), from)
}

type counter struct{ bytes *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.bytes.Add(int64(len(b)))
	return len(b), nil
}

// close ends the door once the agent has gone.
func (d *door) close() {
	_ = d.listener.Close()
	d.running.Wait()
}

// many runs do for each number below n, so many at once, and returns the first errors.
func many(ctx context.Context, n, workers int, do func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				if errs[w] = ctx.Err(); errs[w] == nil {
					errs[w] = do(i)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
