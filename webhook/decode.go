// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"bytes"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// object is the part of a Pod or a Binding that admission reads. A full decode costs several times as much.
type object struct {
	Metadata struct {
		Annotations       map[string]string `json:"annotations"`
		DeletionTimestamp *string           `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork    bool        `json:"hostNetwork"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
}

// container is the part of a container that admission reads.
type container struct {
	RestartPolicy *string    `json:"restartPolicy"`
	Resources     *resources `json:"resources"`
}

// resources tells a missing map from an empty one: a patch has to make it.
type resources struct {
	Requests *amounts `json:"requests"`
	Limits   *amounts `json:"limits"`
}

// amounts holds our resource only; the key is bandwidth.Resource.
type amounts struct {
	Egress *amount `json:"kubepace.io/egress-bandwidth"`
}

// amount is the text of a quantity, which JSON may hold as a string or as a number.
type amount string

// UnmarshalJSON implements json.Unmarshaler.
func (a *amount) UnmarshalJSON(raw []byte) error {
	*a = amount(bytes.Trim(raw, `"`))
	return nil
}

func (a *amounts) text() string {
	if a == nil || a.Egress == nil {
		return ""
	}
	return string(*a.Egress)
}

// pod gives what the policy judges.
func (o *object) pod() policy.Pod {
	_, mirror := o.Metadata.Annotations[corev1.MirrorPodAnnotationKey]
	return policy.Pod{
		Annotations: o.Metadata.Annotations, HostNetwork: o.Spec.HostNetwork, Mirror: mirror,
		Containers: policyContainers(o.Spec.Containers), InitContainers: policyContainers(o.Spec.InitContainers),
	}
}

func policyContainers(list []container) []policy.Container {
	out := make([]policy.Container, len(list))
	for i, c := range list {
		out[i].Sidecar = c.RestartPolicy != nil && *c.RestartPolicy == string(corev1.ContainerRestartPolicyAlways)
		if c.Resources != nil {
			out[i].Amount = policy.Amount{Request: c.Resources.Requests.text(), Limit: c.Resources.Limits.text()}
		}
	}
	return out
}

// standing is what an object already had, as the old one of an update.
func (o *object) standing() *policy.Standing {
	rate, err := bandwidth.Parse(o.Metadata.Annotations[bandwidth.AnnotationEgress])
	if err != nil {
		rate = 0
	}
	return &policy.Standing{Limit: rate}
}

// carriesLimit reports whether one of our annotations is there.
func (o *object) carriesLimit() bool {
	for _, key := range policy.Keys {
		if _, ok := o.Metadata.Annotations[key]; ok {
			return true
		}
	}
	return false
}

// marked reports whether the re-stamping mark is another one than before.
func (o *object) marked(old *object) bool {
	mark, ok := o.Metadata.Annotations[bandwidth.AnnotationPolicy]
	return ok && mark != old.Metadata.Annotations[bandwidth.AnnotationPolicy]
}

// sameLimit reports whether all our annotations are alike in both.
func (o *object) sameLimit(other *object) bool {
	for _, key := range policy.Keys {
		a, hasA := o.Metadata.Annotations[key]
		b, hasB := other.Metadata.Annotations[key]
		if a != b || hasA != hasB {
			return false
		}
	}
	return true
}
