// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// atRest is when a webhook that has become ready has read the cluster, and leads.
const atRest = 3 * time.Second

//go:embed cel.yaml
var celManifests []byte

// adminSwitch puts one variant's admission in force and takes the other's away, so that each pays for itself alone.
type adminSwitch struct {
	*lab.Cluster
	webhook *lab.Replica
	floor   *floor
	objects map[string][]*unstructured.Unstructured // what a variant adds to admission
	on      string
}

// newSwitch installs everything of kubepace but admission, and the namespaces of the pods.
func newSwitch(ctx context.Context, c *lab.Cluster, webhook *lab.Replica, floor *floor) (*adminSwitch, error) {
	s := &adminSwitch{Cluster: c, webhook: webhook, floor: floor, objects: map[string][]*unstructured.Unstructured{}, on: none}
	base, err := c.Manifests("manifests/base")
	if err != nil {
		return nil, err
	}
	var rest []*unstructured.Unstructured
	for _, o := range base {
		if strings.HasPrefix(o.GetAPIVersion(), "admissionregistration.k8s.io/") {
			s.objects[kubepace] = append(s.objects[kubepace], o)
		} else {
			rest = append(rest, o)
		}
	}
	if err := c.Install(ctx, rest, "", nil); err != nil {
		return nil, err
	}
	for variant, manifests := range map[string][]byte{bare: floorManifests, cel: celManifests} {
		if s.objects[variant], err = decode(manifests); err != nil {
			return nil, err
		}
	}
	for _, k := range podKinds {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: k.namespace, Labels: k.labels}}
		if err := c.Client.Create(ctx, ns); err != nil {
			return nil, fmt.Errorf("create namespace %s: %w", k.namespace, err)
		}
	}
	return s, nil
}

func decode(manifests []byte) (out []*unstructured.Unstructured, err error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		out = append(out, o)
	}
}

// to switches, and returns when pods show it. The webhook's process runs only where it is what is measured: it follows
// the cluster's pods, and elsewhere would take processor time from those who have no webhook.
func (s *adminSwitch) to(ctx context.Context, variant string) error {
	for _, o := range s.objects[s.on] {
		if err := s.Client.Delete(ctx, o.DeepCopy()); err != nil {
			return fmt.Errorf("delete %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	s.on = variant
	if err := s.runFor(ctx, variant); err != nil {
		return err
	}
	var fresh []*unstructured.Unstructured
	for _, o := range s.objects[variant] {
		fresh = append(fresh, o.DeepCopy())
	}
	if err := s.install(ctx, fresh); err != nil {
		return err
	}
	if variant == kubepace {
		if err := s.WaitInjected(ctx); err != nil {
			return err
		}
		time.Sleep(atRest)
	}
	for _, k := range podKinds {
		var last error
		err := lab.Until(ctx, "admission by "+variant, func() bool { last = s.probe(ctx, k); return last == nil })
		if err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
	// What shows in no pod (policies that refuse) settles as well.
	time.Sleep(500 * time.Millisecond)
	return nil
}

// runFor starts the variant's process and ends the others'.
func (s *adminSwitch) runFor(ctx context.Context, variant string) error {
	if err := errors.Join(s.floor.stop(), s.run(ctx, variant == kubepace)); err != nil || variant != bare {
		return err
	}
	return s.floor.start()
}

// run starts the webhook or ends it.
func (s *adminSwitch) run(ctx context.Context, wanted bool) error {
	if !wanted {
		return s.webhook.Stop()
	}
	if err := s.webhook.StartAgain(); err != nil {
		return err
	}
	return s.webhook.WaitReady(ctx)
}

func (s *adminSwitch) install(ctx context.Context, objects []*unstructured.Unstructured) error {
	switch s.on {
	case kubepace:
		return s.Install(ctx, objects, "https://"+s.webhook.Address, nil)
	case bare:
		return s.Install(ctx, objects, s.floor.url, func(webhook map[string]any) {
			webhook["clientConfig"].(map[string]any)["caBundle"] = s.floor.bundle
		})
	}
	return s.Install(ctx, objects, "", nil)
}

// probe tries a pod without leaving one.
func (s *adminSwitch) probe(ctx context.Context, k podKind) error {
	p := k.pod()
	if err := s.Client.Create(ctx, p, client.DryRunAll); err != nil {
		return err
	}
	return k.check(p, s.on)
}

// check compares what a pod got.
func (k podKind) check(p *corev1.Pod, variant string) error {
	if got := p.Annotations[bandwidth.AnnotationEgress]; got != k.gets[variant] {
		return fmt.Errorf("a pod of kind %s got %q, want %q", k.Name, got, k.gets[variant])
	}
	return nil
}

// pod is a new one of the kind: four containers with what containers usually have.
func (k podKind) pod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "web-", Namespace: k.namespace, Labels: map[string]string{"app": "web", "team": "payments"},
		Annotations: map[string]string{"prometheus.io/scrape": "true"},
	}}
	if k.asks != "" {
		p.Annotations[bandwidth.AnnotationEgress] = k.asks
	}
	for _, name := range []string{"app", "proxy", "log", "metrics"} {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: name, Image: "registry.example.com/team/" + name + ":1.2.3",
			Env:   []corev1.EnvVar{{Name: "LEVEL", Value: "info"}, {Name: "ENDPOINT", Value: "https://collector.example.com:4317"}},
			Ports: []corev1.ContainerPort{{ContainerPort: int32(8080 + len(p.Spec.Containers))}},
		})
	}
	return p
}
