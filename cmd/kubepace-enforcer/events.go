// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/condition"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// Reasons of the events on pods.
const (
	eventEnforced    = "EgressEnforced"
	eventNotEnforced = "EgressNotEnforced"
	eventReleased    = "EgressUnlimited"
	eventDisturbed   = "EgressDisturbed"
)

// events tells a pod's owner, by events on the pod, that its limit is not enforced, when it is at last, and when limit
// or mode change. A pod that is limited as it should be from the start is no news.
type events struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorderLogger
	known       map[string]told // by UID
}

// told is what is known of a pod already.
type told struct {
	enforced bool
	limit    bandwidth.Rate
	mode     datapath.Mode
	reason   string
}

func newEvents(ctx context.Context, client typedcorev1.EventsGetter, node string) *events {
	b := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.Events("")})
	recorder := b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubepace-enforcer", Host: node})
	return &events{broadcaster: b, recorder: recorder, known: map[string]told{}}
}

// maxKnown bounds what is remembered of pods that may be gone by now.
const maxKnown = 10000

// Changed implements enforcer.Observer.
func (e *events) Changed(pod pods.Pod, v enforcer.Verdict) {
	before, known := e.known[pod.UID]
	now := told{v.Enforced, v.Limit, v.Mode, v.Reason}
	if !known && len(e.known) >= maxKnown {
		clear(e.known)
	}
	e.known[pod.UID] = now
	switch {
	case !v.Enforced || v.Code == enforcer.CodeLastGoodLimit:
		e.recorder.Event(podReference(pod), corev1.EventTypeWarning, eventNotEnforced, v.Reason)
	case v.Reason != "" || known && before != now:
		e.recorder.Eventf(podReference(pod), corev1.EventTypeNormal, eventEnforced, "egress limit %s", condition.Text(v))
	}
}

// Released implements enforcer.Observer.
func (e *events) Released(pod pods.Pod) {
	if _, known := e.known[pod.UID]; known {
		delete(e.known, pod.UID)
		e.recorder.Event(podReference(pod), corev1.EventTypeNormal, eventReleased, "the pod has no egress limit any more")
	}
}

func podReference(pod pods.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.ObjectUID())}
}

var _ enforcer.RepairObserver = (*events)(nil)

// Repaired implements enforcer.RepairObserver.
func (e *events) Repaired(pod pods.Pod, what datapath.Repair) {
	e.recorder.Eventf(podReference(pod), corev1.EventTypeWarning, eventDisturbed, "the egress limit was not enforced for a moment: %s", what)
}

func (e *events) close() { e.broadcaster.Shutdown() }
