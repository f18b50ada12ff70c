// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/kubepace/kubepace/bandwidth"
)

// kept are the annotations that a verdict depends on.
var kept = []string{
	bandwidth.AnnotationEgress, bandwidth.AnnotationRequested, bandwidth.AnnotationSource, bandwidth.AnnotationPolicy,
	corev1.MirrorPodAnnotationKey,
}

// PodCache narrows the manager's watch of pods to those that a limit can hold and that run or will, and strips them to
// what a verdict depends on: of a pod of several KB, about one stays.
func PodCache() cache.ByObject {
	return cache.ByObject{
		Field: fields.AndSelectors(
			fields.OneTermEqualSelector("spec.hostNetwork", "false"),
			fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
			fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
		),
		Transform: trim,
	}
}

// trim may meet what it has trimmed already.
func trim(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil // a tombstone
	}
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		DeletionTimestamp: pod.DeletionTimestamp,
	}}
	for _, key := range kept {
		if value, ok := pod.Annotations[key]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = value
		}
	}
	out.Spec.HostNetwork = pod.Spec.HostNetwork
	out.Spec.Containers = counted(pod.Spec.Containers)
	out.Spec.InitContainers = counted(pod.Spec.InitContainers)
	return out, nil
}

// counted keeps the containers that carry our resource, and of them nothing else.
func counted(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range containers {
		c := &containers[i]
		q, ok := c.Resources.Requests[bandwidth.Resource]
		if !ok {
			continue
		}
		amount := corev1.ResourceList{bandwidth.Resource: q}
		out = append(out, corev1.Container{
			Name: c.Name, RestartPolicy: c.RestartPolicy,
			Resources: corev1.ResourceRequirements{Requests: amount, Limits: amount},
		})
	}
	return out
}
