// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Audit annotations; the API server puts the webhook's name before them.
const (
	auditReason    = "reason"
	auditLimit     = "limit"
	auditRequested = "requested"
	auditMode      = "mode"
	auditCounted   = "counted"
)

// untouched admits without a word: the request cannot matter to us.
func untouched() admission.Response {
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Allowed: true}}
}

// respond turns a decision on a pod into a response.
func respond(name string, o *object, d policy.Decision) admission.Response {
	r := untouched()
	if d.Denied() {
		r = refused(name, "Pod", d.Violations)
	}
	r.Patches = append(patchFor(o.Metadata.Annotations, d.Changes), patchContainers(o, d.Containers)...)
	r.Warnings = d.Warnings
	r.AuditAnnotations = auditOf(d)
	return r
}

// refused is the answer that the API server's own validation gives, so that kubectl prints it alike: 422 with a cause
// for each violation.
func refused(name, kind string, violations field.ErrorList) admission.Response {
	details := &metav1.StatusDetails{Name: name, Kind: kind}
	for _, v := range violations {
		details.Causes = append(details.Causes, metav1.StatusCause{
			Type: metav1.CauseType(v.Type), Message: v.ErrorBody(), Field: v.Field,
		})
	}
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
			Message: violations.ToAggregate().Error(), Details: details,
		},
	}}
}

// auditOf says nothing where the policy had nothing to say: most pods of most clusters.
func auditOf(d policy.Decision) map[string]string {
	switch d.Reason {
	case policy.ReasonUnlimited, policy.ReasonOff, policy.ReasonMirror:
		return nil
	}
	audit := map[string]string{auditReason: string(d.Reason)}
	if d.Limit != 0 && !d.Denied() {
		audit[auditLimit] = d.Limit.String()
	}
	if d.Count != 0 {
		audit[auditCounted] = d.Count.String()
	}
	if d.Requested != "" {
		audit[auditRequested] = d.Requested
	}
	if d.Mode != bandwidth.ModeEnforce {
		audit[auditMode] = d.Mode
	}
	return audit
}
