// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

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
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
}

// decode reads an object as the API server encodes it: field names match in their exact case only.
func decode(raw []byte) (*object, error) {
	if len(raw) == 0 {
		return nil, errors.New("decode object: the review holds none")
	}
	var o object
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &o); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	return &o, nil
}

// pod gives what the policy judges.
func (o *object) pod() policy.Pod {
	_, mirror := o.Metadata.Annotations[corev1.MirrorPodAnnotationKey]
	return policy.Pod{Annotations: o.Metadata.Annotations, HostNetwork: o.Spec.HostNetwork, Mirror: mirror}
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
