// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// LastGood remembers what settings said before they became unreadable: it holds nothing of the others, and outlives no
// restart. Where it knows nothing the policy falls back on the tightest setting that can be read.
type LastGood struct {
	mu    sync.RWMutex
	texts map[string]map[settingKey]string // by namespace
}

// settingKey names a rate: a label of the namespace, or a field of a LimitRange.
type settingKey struct{ limitRange, field string }

// NewLastGood returns one that watches the objects of these caches.
func NewLastGood(ctx context.Context, informers cache.Informers) (*LastGood, error) {
	g := &LastGood{texts: map[string]map[settingKey]string{}}
	for _, kind := range []client.Object{NamespaceMetadata(), &corev1.LimitRange{}} {
		informer, err := informers.GetInformer(ctx, kind)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			UpdateFunc: func(old, now any) { g.changed(old, now) },
			DeleteFunc: func(old any) { g.changed(old, nil) },
		})
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	return g, nil
}

// changed compares an object with what it was; now is nil where it is gone.
func (g *LastGood) changed(old, now any) {
	if tombstone, ok := old.(toolscache.DeletedFinalStateUnknown); ok {
		old = tombstone.Obj
	}
	o, ok := old.(client.Object)
	if !ok {
		return
	}
	namespace := o.GetNamespace()
	if namespace == "" {
		namespace = o.GetName()
	}
	before, after := rateTexts(old), rateTexts(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, text := range before {
		if _, err := bandwidth.Parse(text); err == nil {
			g.set(namespace, key, text)
		}
	}
	for key := range maps.Clone(g.texts[namespace]) {
		text, there := after[key]
		if _, err := bandwidth.Parse(text); (there && err == nil) || (!there && key.of(old)) {
			g.forget(namespace, key)
		}
	}
}

func (g *LastGood) set(namespace string, key settingKey, text string) {
	if g.texts[namespace] == nil {
		g.texts[namespace] = map[settingKey]string{}
	}
	g.texts[namespace][key] = text
}

func (g *LastGood) forget(namespace string, key settingKey) {
	delete(g.texts[namespace], key)
	if len(g.texts[namespace]) == 0 {
		delete(g.texts, namespace)
	}
}

// recall adds what is remembered to what was read. It is a no-op on nil.
func (g *LastGood) recall(ns *policy.Namespace) {
	if g == nil {
		return
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	for key, text := range g.texts[ns.Name] {
		if key.limitRange == "" {
			if ns.LastGood == nil {
				ns.LastGood = map[string]string{}
			}
			ns.LastGood[key.field] = text
			continue
		}
		for i := range ns.Ranges {
			if r := &ns.Ranges[i]; r.Name == key.limitRange && r.Type == string(corev1.LimitTypePod) {
				if key.field == "max" {
					r.LastGoodMax = text
				} else {
					r.LastGoodMin = text
				}
			}
		}
	}
}

// of reports whether the key is one that this object sets.
func (k settingKey) of(o any) bool {
	if lr, ok := o.(*corev1.LimitRange); ok {
		return k.limitRange == lr.Name
	}
	return k.limitRange == ""
}

// rateTexts are an object's rates, readable or not.
func rateTexts(o any) map[settingKey]string {
	out := map[settingKey]string{}
	switch o := o.(type) {
	case *corev1.LimitRange:
		for _, r := range rangesOf(o) {
			if r.Type != string(corev1.LimitTypePod) {
				continue
			}
			for field, text := range map[string]string{"min": r.Min, "max": r.Max} {
				if text != "" {
					out[settingKey{o.Name, field}] = text
				}
			}
		}
	case client.Object:
		for key := range rateLabels {
			if text, ok := o.GetLabels()[key]; ok {
				out[settingKey{field: key}] = text
			}
		}
	}
	return out
}
