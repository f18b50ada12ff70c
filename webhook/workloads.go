// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/webhook/policy"
)

// Workloads warns whoever applies a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob or ReplicationController
// of what its pods will meet: their refusal would show up in the events of a controller only, minutes later. It never
// refuses: the verdict on a template is a forecast, for the policy and other webhooks may change what a pod asks for.
type Workloads struct {
	// Policies finds what holds in a namespace.
	Policies interface {
		Of(ctx context.Context, namespace string) (policy.Policy, error)
	}
}

// workload is the part of all these kinds that matters: the template is at one of two places.
type workload struct {
	Spec struct {
		Template    *object `json:"template"`
		JobTemplate *struct {
			Spec struct {
				Template *object `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// template returns the pod template and its path; nil where there is none.
func (w *workload) template() (*object, string) {
	if w.Spec.JobTemplate != nil {
		return w.Spec.JobTemplate.Spec.Template, "spec.jobTemplate.spec.template"
	}
	return w.Spec.Template, "spec.template"
}

// Warn is the verdict on a workload: always admitted, with warnings.
func (w *Workloads) Warn(ctx context.Context, req *request[workload]) (admission.Response, error) {
	now, before, err := req.objects()
	if err != nil {
		return untouched(), err
	}
	template, path := now.template()
	if template == nil {
		return untouched(), nil
	}
	if before != nil {
		if old, _ := before.template(); old != nil && template.sameLimit(old) && template.Spec.HostNetwork == old.Spec.HostNetwork {
			return untouched(), nil
		}
	}
	pol, err := w.Policies.Of(ctx, req.Namespace)
	if err != nil {
		return admission.Response{}, err
	}
	r := untouched()
	r.Warnings = forecast(pol.Decide(template.pod()), req.Kind.Kind, path)
	return r, nil
}

// forecast says what a decision on the template means for its pods.
func forecast(d policy.Decision, kind, path string) []string {
	var out []string
	for _, v := range d.Violations {
		there := *v
		there.Field = path + "." + v.Field
		out = append(out, fmt.Sprintf("pods of this %s will be refused: %v", kind, &there))
	}
	for _, w := range d.Warnings {
		out = append(out, fmt.Sprintf("pods of this %s: %s", kind, w))
	}
	return out
}
