// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/webhook/policy"
)

// Pods judges pods and pods/status, on behalf of the mutating and of the validating handler.
type Pods struct {
	// Cluster is the administrator's policy, already validated.
	Cluster policy.Cluster
	// Namespaces finds the settings that go with a request.
	Namespaces Namespaces
	// Metrics counts decisions; nil counts nothing.
	Metrics *Metrics
}

// subject is the pod under review, and what it had before where it exists already. The object is nil where the
// request cannot matter: a pod on its way out, or an update that leaves our annotations alone. matchConditions keep such
// calls away; they are not relied upon.
func subject(req *request[object]) (*object, *policy.Standing, error) {
	o, old, err := req.objects()
	switch {
	case err != nil, o.Metadata.DeletionTimestamp != nil:
		return nil, nil, err
	case old == nil:
		return o, nil, nil
	case o.sameLimit(old) && !o.marked(old):
		return nil, nil, nil
	default:
		return o, old.standing(), nil
	}
}

// asksAnew reports whether an update leaves the limit alone and changes the re-stamping mark.
func asksAnew(req *request[object]) bool {
	o, old, err := req.objects()
	return err == nil && old != nil && o.sameLimit(old) && o.marked(old)
}

// resolve finds the policy of the request's namespace.
func (p *Pods) resolve(ctx context.Context, req *request[object]) (policy.Policy, error) {
	ns, err := p.Namespaces.Settings(ctx, req.Namespace)
	if err != nil {
		return policy.Policy{}, err
	}
	return policy.Resolve(p.Cluster, ns), nil
}

// Mutate writes the limit into a pod, or refuses it with every violation at once. An update that changes nothing but the
// re-stamping mark asks for what a new pod would get: only here, where the same request writes the limit.
func (p *Pods) Mutate(ctx context.Context, req *request[object]) (admission.Response, error) {
	if asksAnew(req) {
		return p.judge(ctx, req, halfMutate, policy.Policy.Redecide)
	}
	return p.judge(ctx, req, halfMutate, policy.Policy.Decide)
}

// Validate checks the finished pod, whoever changed it after Mutate.
func (p *Pods) Validate(ctx context.Context, req *request[object]) (admission.Response, error) {
	return p.judge(ctx, req, halfValidate, policy.Policy.Check)
}

func (p *Pods) judge(ctx context.Context, req *request[object], half string,
	verdict func(policy.Policy, policy.Pod) policy.Decision,
) (admission.Response, error) {
	o, standing, err := subject(req)
	if err != nil {
		return admission.Response{}, err
	}
	if o == nil {
		return untouched(), nil
	}
	pol, err := p.resolve(ctx, req)
	if err != nil {
		return admission.Response{}, err
	}
	pod := o.pod()
	pod.Standing = standing
	d := verdict(pol, pod)
	p.Metrics.count(req.DryRun, req.Namespace, half, d)
	return respond(req.Name, o, d), nil
}
