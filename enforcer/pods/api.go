// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// APIServer is the pods that are bound to one node, watched at the API server. While the API server is away the last
// known pods stay, and Snapshot.Complete stays what it was.
type APIServer struct {
	cache   cache.Cache
	log     logr.Logger
	changes signal
	synced  atomic.Bool

	mu     sync.Mutex
	pods   map[types.NamespacedName]read
	latest *Snapshot // nil after a change
}

// read is what was read of a pod at the API server, once for each change of it: a node full of pods is looked at many
// times a second while others start.
type read struct {
	pod Pod
	err error
}

var _ Source = (*APIServer)(nil)

// NewAPIServer prepares a watch on the pods of node. It talks to the API server only once Run is called.
func NewAPIServer(config *rest.Config, node string, log logr.Logger) (*APIServer, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	// One fixed kind: discovery would only cost requests, and fail where the API server is away at start.
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	c, err := cache.New(config, cache.Options{
		Scheme: scheme,
		Mapper: mapper,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {Field: fields.OneTermEqualSelector("spec.nodeName", node), Transform: strip},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("build cache of pods: %w", err)
	}
	return &APIServer{cache: c, log: log, changes: newSignal(), pods: map[types.NamespacedName]read{}}, nil
}

// strip keeps of each pod only what fromObject reads: a node's pods with all their volumes and environments are
// megabytes.
func strip(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	small := &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			DeletionTimestamp: pod.DeletionTimestamp,
		},
		Spec:   corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork, Containers: counted(pod)},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs},
	}
	for _, key := range []string{bandwidth.AnnotationEgress, corev1.MirrorPodAnnotationKey, annotationStaticUID} {
		if text, ok := pod.Annotations[key]; ok {
			if small.Annotations == nil {
				small.Annotations = map[string]string{}
			}
			small.Annotations[key] = text
		}
	}
	if c := condition(pod); c != nil {
		small.Status.Conditions = []corev1.PodCondition{*c}
	}
	return small, nil
}

// matters reports whether a pod that strip left changed in more than its version and our own condition: each condition
// that the agent writes comes back as a change, and so does much that the kubelet writes.
func matters(before, now any) bool {
	a, ok1 := before.(*corev1.Pod)
	b, ok2 := now.(*corev1.Pod)
	if !ok1 || !ok2 {
		return true
	}
	x, y := *a, *b
	x.ResourceVersion, y.ResourceVersion = "", ""
	x.Status.Conditions, y.Status.Conditions = nil, nil
	return !reflect.DeepEqual(x, y)
}

// Run implements Source.
func (a *APIServer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.cache.Start(ctx) }()
	if err := a.watch(ctx); err != nil {
		cancel()
		return errors.Join(err, <-done)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	return nil
}

func (a *APIServer) watch(ctx context.Context) error {
	// Not blocking until the first sync: an API server that is away at start must not keep Run from returning at the
	// end of ctx without an error.
	informer, err := a.cache.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	handler, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(now any) {
			a.keep(now)
			a.changes.notify()
		},
		UpdateFunc: func(before, now any) {
			a.keep(now)
			if matters(before, now) {
				a.changes.notify()
			}
		},
		DeleteFunc: func(last any) {
			a.drop(last)
			a.changes.notify()
		},
	})
	if err != nil {
		return fmt.Errorf("watch pods: add handler: %w", err)
	}
	if toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		a.synced.Store(true)
		a.changes.notify()
		a.log.Info("pods synced with the API server")
	}
	return nil
}

// keep reads a pod that came or changed.
func (a *APIServer) keep(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	r := read{}
	if r.pod, r.err = fromObject(pod, OriginAPI); r.err != nil {
		// An unreadable pod is not a missing one: it stays known, so that its limit stays in force.
		r.pod = Pod{
			Pod: datapath.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)},
			Err: r.err, Phase: pod.Status.Phase, Origin: OriginAPI,
		}
		r.err = fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, r.err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = r
	a.latest = nil
}

// drop forgets a pod; what the watch missed the end of comes as a name only.
func (a *APIServer) drop(object any) {
	name, err := toolscache.DeletionHandlingObjectToName(object)
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, types.NamespacedName{Namespace: name.Namespace, Name: name.Name})
	a.latest = nil
}

// Snapshot implements Source.
func (a *APIServer) Snapshot() Snapshot {
	if !a.synced.Load() {
		return Snapshot{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latest != nil {
		return *a.latest
	}
	s := &Snapshot{Complete: true, Pods: make([]Pod, 0, len(a.pods))}
	for _, r := range a.pods {
		s.Pods = append(s.Pods, r.pod)
		if r.err != nil {
			s.Problems = append(s.Problems, r.err)
		}
	}
	slices.SortFunc(s.Pods, compare)
	slices.SortFunc(s.Problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	a.latest = s
	return *s
}

// Changes implements Source.
func (a *APIServer) Changes() <-chan struct{} { return a.changes }
