// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"math"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kubepace/kubepace/bandwidth"
)

func asks(text string) corev1.Container {
	if text == "" {
		return corev1.Container{}
	}
	return corev1.Container{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{bandwidth.Resource: resource.MustParse(text)}}}
}

func TestRequested(t *testing.T) {
	sidecar := func(text string) corev1.Container {
		c, always := asks(text), corev1.ContainerRestartPolicyAlways
		c.RestartPolicy = &always
		return c
	}
	for name, c := range map[string]struct {
		containers, inits []corev1.Container
		overhead          string
		want              int64
	}{
		"none":                    {containers: []corev1.Container{asks("")}},
		"sum":                     {containers: []corev1.Container{asks("10M"), asks(""), asks("5M")}, want: 15e6},
		"larger init":             {containers: []corev1.Container{asks("10M")}, inits: []corev1.Container{asks("12M"), asks("3M")}, want: 12e6},
		"smaller init":            {containers: []corev1.Container{asks("10M")}, inits: []corev1.Container{asks("3M")}, want: 10e6},
		"sidecar":                 {containers: []corev1.Container{asks("10M")}, inits: []corev1.Container{sidecar("5M")}, want: 15e6},
		"init after sidecar":      {containers: []corev1.Container{asks("1M")}, inits: []corev1.Container{sidecar("5M"), asks("10M")}, want: 15e6},
		"overhead":                {containers: []corev1.Container{asks("10M")}, overhead: "1M", want: 11e6},
		"hostile, beyond 64 bits": {containers: []corev1.Container{asks("9E"), asks("9E")}, want: math.MaxInt64},
		"hostile, negative":       {containers: []corev1.Container{asks("-9E"), asks("1M")}, want: 1e6},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: c.containers, InitContainers: c.inits}}
			if c.overhead != "" {
				pod.Spec.Overhead = corev1.ResourceList{bandwidth.Resource: resource.MustParse(c.overhead)}
			}
			if got := requested(pod); got != c.want {
				t.Errorf("requested %d; want %d", got, c.want)
			}
			small, err := strip(pod)
			if err != nil {
				t.Fatal(err)
			}
			if got := requested(small.(*corev1.Pod)); got != c.want {
				t.Errorf("stripped, requested %d; want %d", got, c.want)
			}
		})
	}
}

func TestStripKeepsOurConditionOnly(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodReady}, {Type: bandwidth.ConditionEnforced, Reason: "Pacing"},
	}}}
	small, err := strip(pod)
	if err != nil {
		t.Fatal(err)
	}
	if got := small.(*corev1.Pod).Status.Conditions; len(got) != 1 || got[0].Reason != "Pacing" {
		t.Errorf("conditions %v; want ours alone", got)
	}
	pod.UID = "a"
	p, err := fromObject(pod, OriginAPI)
	if err != nil || p.Condition == nil || p.Condition.Reason != "Pacing" {
		t.Errorf("condition %v, %v; want ours", p.Condition, err)
	}
}
