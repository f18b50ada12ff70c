// SPDX-License-Identifier: Apache-2.0

package condition

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/pods"
)

const (
	// perSecond and burst bound what one node writes, above all after an outage of the API server or a change of mode.
	perSecond = 10
	burst     = 20
	// minRetry and maxRetry bound the wait after a refused write.
	minRetry = 500 * time.Millisecond
	maxRetry = 2 * time.Minute
	// compareEvery is how often everything is compared with what the API server has, so that what got lost is found. It
	// costs no request where nothing differs. soon is how often until all pods are known.
	compareEvery = 30 * time.Second
	soon         = time.Second
	// patience is how long one write may take.
	patience = 15 * time.Second
)

// Writer keeps the conditions of this node's pods. The loop tells it of verdicts; Run writes them.
type Writer struct {
	patch  Patch
	source pods.Source
	log    logr.Logger
	queue  workqueue.TypedRateLimitingInterface[string] // of UIDs
	bound  flowcontrol.RateLimiter

	mu   sync.Mutex
	pods map[string]*entry // by UID
}

var _ enforcer.Observer = (*Writer)(nil)

// entry is one pod whose condition is kept.
type entry struct {
	pod  datapath.Pod
	want *corev1.PodCondition // nil: none
	have *corev1.PodCondition // what the API server has, as far as is known
}

// Patch changes one pod's condition to the given one; nil takes it away. The error says NotFound or Conflict where the
// pod of this UID is gone.
type Patch func(ctx context.Context, pod datapath.Pod, to *corev1.PodCondition) error

// New returns a writer of conditions. The source is where the pods come from, with the conditions that they have.
func New(patch Patch, source pods.Source, log logr.Logger) *Writer {
	return &Writer{
		patch: patch, source: source, log: log, pods: map[string]*entry{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](minRetry, maxRetry)),
		bound: flowcontrol.NewTokenBucketRateLimiter(perSecond, burst),
	}
}

// Changed implements enforcer.Observer.
func (w *Writer) Changed(pod pods.Pod, v enforcer.Verdict) {
	c := Of(v)
	w.set(pod, &c)
}

// Released implements enforcer.Observer.
func (w *Writer) Released(pod pods.Pod) { w.set(pod, nil) }

func (w *Writer) set(pod pods.Pod, want *corev1.PodCondition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.pods[pod.UID]
	if e == nil {
		e = &entry{pod: object(pod), have: pod.Condition}
		w.pods[pod.UID] = e
	}
	e.want = want
	if !same(e.have, e.want) {
		w.queue.Add(pod.UID)
	}
}

// object is the pod as the API server knows it.
func object(pod pods.Pod) datapath.Pod {
	return datapath.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.ObjectUID()}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w.next(ctx) {
		}
	}()
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			w.queue.ShutDown()
			<-done
			return nil
		case <-time.After(wait):
		}
		if wait = soon; w.compare() {
			wait = compareEvery
		}
	}
}

// compare finds conditions that differ from what they should be, whoever changed them, and those that an earlier agent
// left on pods that have no limit any more. It reports whether all pods are known.
func (w *Writer) compare() bool {
	snapshot := w.source.Snapshot()
	if !snapshot.Complete {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	there := make(map[string]bool, len(snapshot.Pods))
	for _, pod := range snapshot.Pods {
		// The last condition of a pod that has finished stays: one write less for each pod of a Job. One that only the node
		// knows has none.
		if pod.Finished() || pod.Origin == pods.OriginCNI {
			continue
		}
		there[pod.UID] = true
		e := w.pods[pod.UID]
		if e == nil && !pod.Limited() && pod.Condition != nil {
			e = &entry{}
			w.pods[pod.UID] = e
		}
		if e != nil {
			e.pod, e.have = object(pod), pod.Condition                      // a static pod's mirror may be another one by now
			if !same(e.have, e.want) && w.queue.NumRequeues(pod.UID) == 0 { // else it waits for its next try already
				w.queue.Add(pod.UID)
			}
		}
	}
	for uid := range w.pods {
		if !there[uid] {
			delete(w.pods, uid)
			w.queue.Forget(uid)
		}
	}
	return true
}

// next writes one pod's condition.
func (w *Writer) next(ctx context.Context) bool {
	uid, shutdown := w.queue.Get()
	if shutdown {
		return false
	}
	defer w.queue.Done(uid)
	w.mu.Lock()
	e := w.pods[uid]
	if e == nil || same(e.have, e.want) {
		w.mu.Unlock()
		w.queue.Forget(uid)
		return true
	}
	pod, want := e.pod, stamped(e.have, e.want)
	w.mu.Unlock()
	if err := w.write(ctx, pod, want); err != nil {
		if ctx.Err() == nil {
			w.log.Error(err, "condition not written, trying again", "pod", pod.String(), "uid", uid)
			w.queue.AddRateLimited(uid)
		}
		return true
	}
	w.queue.Forget(uid)
	w.wrote(uid, e, want)
	return true
}

// write takes a pod that is gone, or another of the same name, for done: compare forgets it.
func (w *Writer) write(ctx context.Context, pod datapath.Pod, want *corev1.PodCondition) error {
	if err := w.bound.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := w.patch(ctx, pod, want)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		w.log.V(1).Info("pod is gone", "pod", pod.String(), "uid", pod.UID, "answer", err.Error())
		return nil
	}
	return err
}

// wrote remembers what is there now. What was asked for meanwhile is written next.
func (w *Writer) wrote(uid string, e *entry, have *corev1.PodCondition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.have = have; !same(e.have, e.want) {
		w.queue.Add(uid)
	} else if have == nil && w.pods[uid] == e {
		delete(w.pods, uid)
	}
}

// stamped gives a condition its time: that of the latest change of its status.
func stamped(have, want *corev1.PodCondition) *corev1.PodCondition {
	if want == nil {
		return nil
	}
	out := want.DeepCopy()
	out.LastTransitionTime = metav1.Now()
	if have != nil && have.Status == want.Status {
		out.LastTransitionTime = have.LastTransitionTime
	}
	return out
}
