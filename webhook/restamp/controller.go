// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/kubepace/kubepace/webhook/policy"
)

// FieldManager owns egress.kubepace.io/policy in managedFields, and nothing else.
const FieldManager = "kubepace-restamp"

const (
	// settle is how long a change rests before it is acted on. The webhook's replicas hear of it by watches of their own:
	// asked too early, they would decide by the old policy. It also gathers edits that come in a row.
	settle = 300 * time.Millisecond
	// gather is how long outcomes are collected for one event on the namespace.
	gather = 3 * time.Second
	// A pod whose webhook does not answer is tried again after shortest, doubled each time up to longest.
	shortest = 200 * time.Millisecond
	longest  = 10 * time.Second
	workers  = 4
)

// Policies finds what holds in a namespace.
type Policies interface {
	Of(ctx context.Context, namespace string) (policy.Policy, error)
}

// Governed tells which namespaces admission sees.
type Governed interface {
	Namespace(ctx context.Context, name string, labels map[string]string) (bool, error)
}

// Options are what the controller works with.
type Options struct {
	Policies Policies
	Governed Governed
	// Namespace is an empty object of the kind in which the manager's cache holds namespaces.
	Namespace client.Object
	// Also are empty objects of further kinds in the manager's cache whose change may change a namespace's policy.
	Also []client.Object
	// Events is where events go.
	Events typedcorev1.EventInterface
	// PodsPerSecond bounds the writes; zero means 50.
	PodsPerSecond float64
	// Metrics may be nil.
	Metrics *Metrics
}

// key names a pod, or a namespace where Pod is empty.
type key struct{ Namespace, Pod string }

type queue = workqueue.TypedRateLimitingInterface[key]

// Add puts the controller into a manager, whose cache must hold pods as PodCache says. It runs on the leader only, and may
// be added to the manager of each of its terms.
func Add(mgr manager.Manager, o Options) error {
	if o.PodsPerSecond == 0 {
		o.PodsPerSecond = 50
	}
	broadcaster := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{BurstSize: 100, QPS: 1. / 60}))
	r := &reconciler{
		cache: mgr.GetCache(), client: mgr.GetClient(), policies: o.Policies, governed: o.Governed, namespace: o.Namespace,
		events:  broadcaster.NewRecorder(mgr.GetScheme(), corev1.EventSource{Component: FieldManager}),
		limiter: flowcontrol.NewTokenBucketRateLimiter(float32(o.PodsPerSecond), max(1, int(o.PodsPerSecond))),
		metrics: o.Metrics, state: newState(),
	}
	c, err := controller.NewTyped("restamp", mgr, controller.TypedOptions[key]{
		// Leader only is the default.
		Reconciler: r, MaxConcurrentReconciles: workers,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[key](shortest, longest),
	})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	var errs []error
	errs = append(errs, c.Watch(source.TypedKind[client.Object, key](mgr.GetCache(), &corev1.Pod{}, r.podHandler())))
	for _, kind := range append(o.Also, o.Namespace) {
		errs = append(errs, c.Watch(source.TypedKind[client.Object, key](mgr.GetCache(), kind, namespaceHandler())))
	}
	// Also the queue: what is done to a pod brings work for its namespace.
	errs = append(errs, c.Watch(source.TypedFunc[key](func(_ context.Context, q queue) error {
		r.queue = q
		return nil
	})))
	errs = append(errs, mgr.Add(recording{broadcaster, o.Events}))
	return errors.Join(errs...)
}

// recording sends events while this replica leads.
type recording struct {
	broadcaster record.EventBroadcaster
	sink        typedcorev1.EventInterface
}

// Start implements manager.Runnable.
func (r recording) Start(ctx context.Context) error {
	r.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: r.sink})
	<-ctx.Done()
	r.broadcaster.Shutdown()
	return nil
}

// podHandler asks for a verdict on a pod that is new or whose annotations of ours changed, unless a look shows that it is
// settled: nearly all are, for the webhook has seen them. A policy that is not known yet here brings its own event, and a
// look at every pod.
func (r *reconciler) podHandler() handler.TypedEventHandler[client.Object, key] {
	look := func(ctx context.Context, o client.Object, q queue) {
		pod, ok := o.(*corev1.Pod)
		p, err := r.policies.Of(ctx, o.GetNamespace())
		if !ok || err != nil || judge(p, policyPod(pod)).action != settled {
			q.AddAfter(key{o.GetNamespace(), o.GetName()}, settle)
		}
		if err == nil && len(p.Quotas) > 0 && ok && policyPod(pod).Charge() == 0 {
			q.AddAfter(key{Namespace: o.GetNamespace()}, gather) // one more, or one less, that no quota counts
		}
	}
	return handler.TypedFuncs[client.Object, key]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[client.Object], q queue) { look(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[client.Object], q queue) {
			if e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || !maps.Equal(e.ObjectOld.GetAnnotations(), e.ObjectNew.GetAnnotations()) {
				look(ctx, e.ObjectNew, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.TypedDeleteEvent[client.Object], q queue) {
			k := key{e.Object.GetNamespace(), e.Object.GetName()}
			r.state.forgetPod(k)
			if p, err := r.policies.Of(ctx, k.Namespace); err == nil && len(p.Quotas) > 0 {
				q.AddAfter(key{Namespace: k.Namespace}, gather)
			}
		},
	}
}

// namespaceHandler asks for a look at the namespace that an object is, or is in. Changes of a quota's status come by
// here as well, at most one per namespace in the time that settle gives, and cost no request.
func namespaceHandler() handler.TypedEventHandler[client.Object, key] {
	add := func(o client.Object, q queue) {
		name := o.GetNamespace()
		if name == "" {
			name = o.GetName()
		}
		q.AddAfter(key{Namespace: name}, settle)
	}
	return handler.TypedFuncs[client.Object, key]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[client.Object], q queue) { add(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[client.Object], q queue) { add(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[client.Object], q queue) { add(e.Object, q) },
	}
}

// namespaceRef is the namespace as an event names it: inside of itself, so that those who may read its events see it.
func namespaceRef(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Namespace: name, Name: name}
}

// podRef is enough of a pod for an event.
func podRef(pod metav1.Object) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.GetNamespace(), Name: pod.GetName(), UID: pod.GetUID()}
}
