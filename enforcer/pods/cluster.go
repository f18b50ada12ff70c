// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kubepace/kubepace/bandwidth"
)

// condition is ours, as the API server has it; nil where there is none.
func condition(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == bandwidth.ConditionEnforced {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// requested is what the scheduler counts of our resource for a pod, in bits/s: what its containers ask for together, or
// where that is more, what one of its init containers needs beside the sidecars that were started before it.
func requested(pod *corev1.Pod) int64 {
	var containers, sidecars, start int64
	for i := range pod.Spec.Containers {
		containers = plus(containers, amount(pod.Spec.Containers[i].Resources.Requests))
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		own := amount(c.Resources.Requests)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars = plus(sidecars, own)
			own = 0
		}
		start = max(start, plus(sidecars, own))
	}
	return plus(max(plus(containers, sidecars), start), amount(pod.Spec.Overhead))
}

func amount(list corev1.ResourceList) int64 {
	q, ok := list[bandwidth.Resource]
	if !ok {
		return 0
	}
	return max(q.Value(), 0)
}

// plus stays at the largest figure instead of turning negative.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// counted is what of a pod's specification requested needs: one container that asks for the sum.
func counted(pod *corev1.Pod) []corev1.Container {
	sum := requested(pod)
	if sum == 0 {
		return nil
	}
	return []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{bandwidth.Resource: *resource.NewQuantity(sum, resource.DecimalSI)}}}}
}
