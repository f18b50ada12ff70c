// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Bindings guards pods/binding and the legacy bindings: the API server merges a Binding's annotations into the pod, but
// shows admission neither the pod nor its old annotations. So a limit cannot be judged there, and none passes.
type Bindings struct {
	// Namespaces finds the labels that go with a request: a namespace may be off or in dry-run mode.
	Namespaces Namespaces
}

// Mutate drops our annotations from a Binding.
func (b *Bindings) Mutate(ctx context.Context, req *request[object]) (admission.Response, error) {
	o, mode, err := b.subject(ctx, req)
	if err != nil || o == nil {
		return untouched(), err
	}
	r := untouched()
	var dropped []string
	for _, key := range policy.Keys {
		if _, ok := o.Metadata.Annotations[key]; ok {
			dropped = append(dropped, key)
		}
	}
	warning := fmt.Sprintf("a binding cannot set %s: ignored; annotate the pod", strings.Join(dropped, ", "))
	if mode == bandwidth.ModeDryRun {
		r.Warnings = []string{"egress dry-run, nothing changed: " + warning}
		return r, nil
	}
	changes := make([]policy.Change, len(dropped))
	for i, key := range dropped {
		changes[i] = policy.Change{Key: key, Remove: true}
	}
	r.Patches = patchFor(o.Metadata.Annotations, changes)
	r.Warnings = []string{warning}
	return r, nil
}

// Validate refuses a Binding that still carries our annotations.
func (b *Bindings) Validate(ctx context.Context, req *request[object]) (admission.Response, error) {
	o, mode, err := b.subject(ctx, req)
	if err != nil || o == nil || mode != bandwidth.ModeEnforce {
		return untouched(), err
	}
	var violations field.ErrorList
	for _, key := range policy.Keys {
		if _, ok := o.Metadata.Annotations[key]; ok {
			violations = append(violations, field.Forbidden(field.NewPath("metadata", "annotations").Key(key),
				"a binding cannot set it; annotate the pod"))
		}
	}
	return refused(req.Name, "Binding", violations), nil
}

// subject is nil where the Binding carries none of our annotations or the namespace's mode is off.
func (b *Bindings) subject(ctx context.Context, req *request[object]) (*object, string, error) {
	o, _, err := req.objects()
	if err != nil || !o.carriesLimit() {
		return nil, "", err
	}
	ns, err := b.Namespaces.Settings(ctx, req.Namespace)
	if err != nil {
		return nil, "", err
	}
	mode := policy.Resolve(policy.Cluster{}, ns).Mode
	if mode == bandwidth.ModeOff {
		return nil, mode, nil
	}
	return o, mode, nil
}
