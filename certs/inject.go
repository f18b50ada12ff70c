// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// injector writes the caBundle into webhook configurations.
type injector struct {
	client     client.Client
	mutating   string // name of the configuration; empty: none
	validating string
	suffix     string // only webhooks whose names end so are ours
}

// operation is one step of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// target is a configuration, with what it holds.
type target struct {
	object client.Object
	hooks  func() []hook
}

// hook is what the injector looks at of one webhook.
type hook struct {
	name   string
	bundle []byte
}

// targets are the configurations, empty.
func (i *injector) targets() []target {
	var out []target
	if i.mutating != "" {
		c := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: i.mutating}}
		out = append(out, target{c, func() (hooks []hook) {
			for _, w := range c.Webhooks {
				hooks = append(hooks, hook{w.Name, w.ClientConfig.CABundle})
			}
			return hooks
		}})
	}
	if i.validating != "" {
		c := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: i.validating}}
		out = append(out, target{c, func() (hooks []hook) {
			for _, w := range c.Webhooks {
				hooks = append(hooks, hook{w.Name, w.ClientConfig.CABundle})
			}
			return hooks
		}})
	}
	return out
}

// inject puts the bundle into every webhook of ours that has another one, in all configurations, and joins the errors.
// It reports whether there was any such webhook.
func (i *injector) inject(ctx context.Context, bundle []byte) (changed bool, err error) {
	var errs []error
	for _, t := range i.targets() {
		patched, err := i.patch(ctx, t, bundle)
		changed = changed || patched
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// trusted is all that our webhooks trust now, one after the other; configurations that are missing trust nothing.
func (i *injector) trusted(ctx context.Context) ([]byte, error) {
	var out []byte
	for _, t := range i.targets() {
		err := i.client.Get(ctx, client.ObjectKeyFromObject(t.object), t.object)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %T %q: %w", t.object, t.object.GetName(), err)
		}
		for _, h := range t.hooks() {
			if strings.HasSuffix(h.name, i.suffix) {
				out = append(append(out, h.bundle...), '\n')
			}
		}
	}
	return out, nil
}

// patch changes the caBundle of our webhooks and no other field.
func (i *injector) patch(ctx context.Context, t target, bundle []byte) (changed bool, err error) {
	name := t.object.GetName()
	if err := i.client.Get(ctx, client.ObjectKey{Name: name}, t.object); err != nil {
		return false, fmt.Errorf("read %T %q: %w", t.object, name, err)
	}
	ops := bundleOps(t.hooks(), i.suffix, bundle)
	if len(ops) == 0 {
		return false, nil
	}
	raw, err := json.Marshal(ops)
	if err != nil {
		return false, fmt.Errorf("encode patch: %w", err)
	}
	if err := i.client.Patch(ctx, t.object, client.RawPatch(types.JSONPatchType, raw)); err != nil {
		return true, fmt.Errorf("patch %T %q: %w", t.object, name, err)
	}
	return true, nil
}

// bundleOps tests each webhook's name first: somebody may have reordered the list since it was read.
func bundleOps(hooks []hook, suffix string, bundle []byte) []operation {
	var ops []operation
	for n, h := range hooks {
		if !strings.HasSuffix(h.name, suffix) || bytes.Equal(h.bundle, bundle) {
			continue
		}
		at := fmt.Sprintf("/webhooks/%d/", n)
		ops = append(ops,
			operation{"test", at + "name", h.name},
			// "add" replaces what is there.
			operation{"add", at + "clientConfig/caBundle", bundle})
	}
	return ops
}
