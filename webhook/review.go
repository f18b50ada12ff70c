// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	kjson "sigs.k8s.io/json"
)

// request is the part of an AdmissionRequest that handlers judge, with the object as T, straight from the review's
// bytes: reading those is most of what a review costs, and going over them once for the review and once more for the
// object costs twice as much.
type request[T any] struct {
	UID       types.UID               `json:"uid"`
	Kind      metav1.GroupVersionKind `json:"kind"`
	Name      string                  `json:"name"`
	Namespace string                  `json:"namespace"`
	Operation admissionv1.Operation   `json:"operation"`
	DryRun    bool                    `json:"dryRun"`
	Object    *T                      `json:"object"`
	OldObject *T                      `json:"oldObject"`
}

// objects returns the object, and what it was before an update; nil for one that is created.
func (r *request[T]) objects() (now, before *T, err error) {
	if r.Object == nil {
		return nil, nil, errors.New("the review holds no object")
	}
	if r.Operation != admissionv1.Update {
		return r.Object, nil, nil
	}
	if r.OldObject == nil {
		return nil, nil, errors.New("the review of an update holds no old object")
	}
	return r.Object, r.OldObject, nil
}

// decodeReview reads a review as the API server encodes it: field names match in their exact case only.
func decodeReview[T any](body []byte) (*request[T], error) {
	var review struct {
		metav1.TypeMeta `json:",inline"`
		Request         *request[T] `json:"request"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &review); err != nil {
		return nil, fmt.Errorf("decode review: %w", err)
	}
	if review.GroupVersionKind() != reviewKind || review.Request == nil {
		return nil, fmt.Errorf("decode review: %v is no request of %v", review.GroupVersionKind(), reviewKind)
	}
	return review.Request, nil
}

var reviewKind = admissionv1.SchemeGroupVersion.WithKind("AdmissionReview")

// encodeReview writes the answer to a request.
func encodeReview(uid types.UID, r admission.Response) ([]byte, error) {
	if err := r.Complete(admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{UID: uid}}); err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	review := admissionv1.AdmissionReview{Response: &r.AdmissionResponse}
	review.SetGroupVersionKind(reviewKind)
	body, err := json.Marshal(review)
	if err != nil {
		return nil, fmt.Errorf("encode review: %w", err)
	}
	return body, nil
}

// maxReview is more than an API server can send: an object is at most 3 MiB, and an update brings two.
const maxReview = 7 << 20

// bodies are kept for the next review; what was decoded from one holds copies.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// withBody reads the request's body and lends it to f.
func withBody(w http.ResponseWriter, r *http.Request, f func(body []byte) error) error {
	const kept = 64 << 10 // what a rare, large object needed is given back
	buffer := bodies.Get().(*bytes.Buffer)
	defer func() {
		if buffer.Cap() <= kept {
			bodies.Put(buffer)
		}
	}()
	buffer.Reset()
	if _, err := buffer.ReadFrom(http.MaxBytesReader(w, r.Body, maxReview)); err != nil {
		return fmt.Errorf("read review: %w", err)
	}
	return f(buffer.Bytes())
}
