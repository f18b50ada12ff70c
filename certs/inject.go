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

// inject puts the bundle into every webhook of ours that has another one, in all configurations, and joins the errors.
func (i *injector) inject(ctx context.Context, bundle []byte) error {
	var errs []error
	if i.mutating != "" {
		c := &admissionv1.MutatingWebhookConfiguration{}
		errs = append(errs, i.patch(ctx, i.mutating, c, bundle, func() (hooks []hook) {
			for _, w := range c.Webhooks {
				hooks = append(hooks, hook{w.Name, w.ClientConfig.CABundle})
			}
			return hooks
		}))
	}
	if i.validating != "" {
		c := &admissionv1.ValidatingWebhookConfiguration{}
		errs = append(errs, i.patch(ctx, i.validating, c, bundle, func() (hooks []hook) {
			for _, w := range c.Webhooks {
				hooks = append(hooks, hook{w.Name, w.ClientConfig.CABundle})
			}
			return hooks
		}))
	}
	return errors.Join(errs...)
}

// hook is what the injector looks at of one webhook.
type hook struct {
	name   string
	bundle []byte
}

// patch changes the caBundle of our webhooks and no other field.
func (i *injector) patch(ctx context.Context, name string, c client.Object, bundle []byte, hooks func() []hook) error {
	if err := i.client.Get(ctx, client.ObjectKey{Name: name}, c); err != nil {
		return fmt.Errorf("read %T %q: %w", c, name, err)
	}
	ops := bundleOps(hooks(), i.suffix, bundle)
	if len(ops) == 0 {
		return nil
	}
	raw, err := json.Marshal(ops)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	if err := i.client.Patch(ctx, c, client.RawPatch(types.JSONPatchType, raw)); err != nil {
		return fmt.Errorf("patch %T %q: %w", c, name, err)
	}
	return nil
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
