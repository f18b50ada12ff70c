// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

// FieldManager owns our resource of the node, and the Lease, in managedFields.
const FieldManager = "kubepace-enforcer"

// newCache watches one node and keeps of it what decide needs.
func newCache(config *rest.Config, name string) (cache.Cache, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	c, err := cache.New(config, cache.Options{
		Scheme: scheme, Mapper: mapper,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}: {Field: fields.OneTermEqualSelector("metadata.name", name), Transform: strip},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("build cache of the node: %w", err)
	}
	return c, nil
}

func strip(object any) (any, error) {
	n, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	ours := func(list corev1.ResourceList) corev1.ResourceList {
		q, ok := list[bandwidth.Resource]
		if !ok {
			return nil
		}
		return corev1.ResourceList{bandwidth.Resource: q}
	}
	return &corev1.Node{
		TypeMeta:   n.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Status:     corev1.NodeStatus{Capacity: ours(n.Status.Capacity), Allocatable: ours(n.Status.Allocatable)},
	}, nil
}

// watch runs the cache and tells of each change, until ctx ends.
func (a *Advertiser) watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.cache.Start(ctx) }()
	informer, err := a.cache.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err == nil {
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			UpdateFunc: func(any, any) { changed() },
			DeleteFunc: func(any) { changed() },
		})
	}
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("watch node: %w", err), <-done)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("watch node: %w", err)
	}
	return nil
}

// current is the node as it was last seen; nil where it is not known or not there.
func (a *Advertiser) current(ctx context.Context) *corev1.Node {
	informer, err := a.cache.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil || !informer.HasSynced() {
		return nil
	}
	n := &corev1.Node{}
	if err := a.cache.Get(ctx, client.ObjectKey{Name: a.opts.Node}, n); err != nil {
		return nil
	}
	return n
}

// api is what the advertiser writes.
type api struct {
	clients kubernetes.Interface
	node    string
	space   string // of the Lease
	lease   time.Duration
}

// set patches our resource of the node; nil takes it away. Capacity alone would do, for the kubelet copies it: but that
// takes it up to 10 s. With the UID in it, a new node of the same name refuses it.
func (a api) set(ctx context.Context, uid types.UID, amount *int64) error {
	var value any
	if amount != nil {
		value = bits(*amount)
	}
	ours := map[string]any{bandwidth.Resource: value}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": uid},
		"status":   map[string]any{"capacity": ours, "allocatable": ours},
	})
	if err != nil {
		return fmt.Errorf("encode resource: %w", err)
	}
	_, err = a.clients.CoreV1().Nodes().Patch(ctx, a.node, types.MergePatchType, data, metav1.PatchOptions{FieldManager: FieldManager}, "status")
	if err != nil {
		return fmt.Errorf("patch status of node %s: %w", a.node, err)
	}
	return nil
}

// renew says that the agent is there, in one request but for the first.
func (a api) renew(ctx context.Context) error {
	seconds, now := int32(a.lease/time.Second), metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/name": "kubepace-enforcer", "app.kubernetes.io/part-of": "kubepace"}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &a.node, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
	data, err := json.Marshal(map[string]any{"spec": lease.Spec})
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	leases, name := a.clients.CoordinationV1().Leases(a.space), bandwidth.LeasePrefix+a.node
	_, err = leases.Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: FieldManager})
	if apierrors.IsNotFound(err) {
		lease.Name = name
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: FieldManager})
	}
	if err != nil {
		return fmt.Errorf("renew lease %s/%s: %w", a.space, name, err)
	}
	return nil
}
