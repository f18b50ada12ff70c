// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// Reasons of the events on pods.
const (
	eventEnforced    = "EgressEnforced"
	eventNotEnforced = "EgressNotEnforced"
)

// events tells a pod's owner, by events on the pod, that its limit is not enforced, and when it is at last. A pod that
// is limited as it should be from the start is no news.
type events struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorderLogger
	warned      map[string]bool // by UID
}

var _ enforcer.Observer = (*events)(nil)

func newEvents(ctx context.Context, config *rest.Config, node string) (*events, error) {
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("configure client for events: %w", err)
	}
	b := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.Events("")})
	recorder := b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubepace-enforcer", Host: node})
	return &events{broadcaster: b, recorder: recorder, warned: map[string]bool{}}, nil
}

// maxWarned bounds what is remembered of pods that may be gone by now.
const maxWarned = 10000

// Changed implements enforcer.Observer.
func (e *events) Changed(pod pods.Pod, v enforcer.Verdict) {
	object := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.ObjectUID())}
	switch {
	case v.Enforced && v.Reason == "" && e.warned[pod.UID]:
		delete(e.warned, pod.UID)
		e.recorder.Eventf(object, corev1.EventTypeNormal, eventEnforced, "egress limit %s is enforced (%s)", v.Limit, v.Mode)
	case v.Enforced && v.Reason == "":
	default:
		if len(e.warned) >= maxWarned {
			clear(e.warned)
		}
		e.warned[pod.UID] = true
		e.recorder.Event(object, corev1.EventTypeWarning, eventNotEnforced, v.Reason)
	}
}

func (e *events) close() { e.broadcaster.Shutdown() }
