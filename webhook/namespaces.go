// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Namespaces finds what the policy reads of a namespace.
type Namespaces interface {
	Settings(ctx context.Context, name string) (policy.Namespace, error)
}

// NamespaceReader reads from an informer's cache, and from the API server what the cache has not seen yet: pods often
// come a millisecond after their namespace.
type NamespaceReader struct {
	Cache client.Reader
	Live  client.Reader
	// LastGood knows what settings said before they became unreadable; nil knows nothing.
	LastGood *LastGood
}

var _ Namespaces = (*NamespaceReader)(nil)

// NamespaceMetadata is the object that the cache holds for a namespace: its metadata only.
func NamespaceMetadata() *metav1.PartialObjectMetadata {
	ns := &metav1.PartialObjectMetadata{}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ns
}

// Settings returns the namespace's labels, which the caller must not change, and what its LimitRanges and ResourceQuotas
// say about our resource.
func (r *NamespaceReader) Settings(ctx context.Context, name string) (policy.Namespace, error) {
	ns, from := NamespaceMetadata(), r.Cache
	key, options := client.ObjectKey{Name: name}, []client.ListOption{client.InNamespace(name), client.UnsafeDisableDeepCopy}
	err := from.Get(ctx, key, ns, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		ns, from, options = NamespaceMetadata(), r.Live, options[:1]
		err = from.Get(ctx, key, ns)
	}
	if err != nil {
		return policy.Namespace{}, fmt.Errorf("read namespace %q: %w", name, err)
	}
	out := policy.Namespace{Name: name, Labels: ns.Labels}
	var ranges corev1.LimitRangeList
	if err := from.List(ctx, &ranges, options...); err != nil {
		return out, fmt.Errorf("list limit ranges of %q: %w", name, err)
	}
	for i := range ranges.Items {
		out.Ranges = append(out.Ranges, rangesOf(&ranges.Items[i])...)
	}
	var quotas corev1.ResourceQuotaList
	if err := from.List(ctx, &quotas, options...); err != nil {
		return out, fmt.Errorf("list resource quotas of %q: %w", name, err)
	}
	for i := range quotas.Items {
		if q, ok := quotaOf(&quotas.Items[i]); ok {
			out.Quotas = append(out.Quotas, q)
		}
	}
	r.LastGood.recall(&out)
	return out, nil
}

// SettingsCache narrows the caches of LimitRanges and ResourceQuotas to what Settings reads: of those that do not name
// our resource, only the name stays.
func SettingsCache() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&corev1.LimitRange{}:    {Transform: trimLimitRange},
		&corev1.ResourceQuota{}: {Transform: trimQuota},
	}
}

// SettingsObjects are empty objects of the kinds in SettingsCache.
func SettingsObjects() []client.Object {
	return []client.Object{&corev1.LimitRange{}, &corev1.ResourceQuota{}}
}

// named is the part of an object's metadata that a cache needs.
func named(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

func trimLimitRange(o any) (any, error) {
	lr, ok := o.(*corev1.LimitRange)
	if !ok {
		return o, nil // a tombstone
	}
	out := &corev1.LimitRange{ObjectMeta: named(lr.ObjectMeta)}
	for _, item := range lr.Spec.Limits {
		kept := corev1.LimitRangeItem{
			Type: item.Type, Max: ours(item.Max), Min: ours(item.Min), Default: ours(item.Default),
			DefaultRequest: ours(item.DefaultRequest), MaxLimitRequestRatio: ours(item.MaxLimitRequestRatio),
		}
		if len(limitEntries(&corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{kept}}})) > 0 {
			out.Spec.Limits = append(out.Spec.Limits, kept)
		}
	}
	return out, nil
}

func trimQuota(o any) (any, error) {
	q, ok := o.(*corev1.ResourceQuota)
	if !ok {
		return o, nil
	}
	out := &corev1.ResourceQuota{ObjectMeta: named(q.ObjectMeta)}
	if out.Spec.Hard = ours(q.Spec.Hard); len(out.Spec.Hard) > 0 {
		out.Spec.Scopes = q.Spec.Scopes
	}
	return out, nil
}

// ours are the entries whose key is meant for us; nil where there is none.
func ours(list corev1.ResourceList) corev1.ResourceList {
	var out corev1.ResourceList
	for key, q := range list {
		if strings.Contains(string(key), bandwidth.Domain) {
			if out == nil {
				out = corev1.ResourceList{}
			}
			out[key] = q
		}
	}
	return out
}

// rangesOf reads the entries that name our resource, one for each item of the list.
func rangesOf(lr *corev1.LimitRange) []policy.Range {
	var out []policy.Range
	for _, item := range lr.Spec.Limits {
		entry := policy.Range{Name: lr.Name, Type: string(item.Type)}
		found := limitEntries(&corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}}})
		for _, e := range found {
			switch e.field {
			case "min":
				entry.Min = e.text
			case "max":
				entry.Max = e.text
			default:
				entry.Others = append(entry.Others, e.field)
			}
		}
		if len(found) > 0 {
			out = append(out, entry)
		}
	}
	return out
}

// quotaOf reads the keys that are meant for us; it is not ok where there is none.
func quotaOf(q *corev1.ResourceQuota) (policy.Quota, bool) {
	out := policy.Quota{Name: q.Name}
	for _, key := range slices.Sorted(maps.Keys(q.Spec.Hard)) {
		switch {
		case key == bandwidth.QuotaKey && slices.Contains(q.Spec.Scopes, corev1.ResourceQuotaScopeBestEffort):
			out.Others = append(out.Others, fmt.Sprintf("%s in scope %s", key, corev1.ResourceQuotaScopeBestEffort))
		case key == bandwidth.QuotaKey:
			out.Counts = true
		case strings.Contains(string(key), bandwidth.Domain):
			out.Others = append(out.Others, string(key))
		}
	}
	return out, out.Counts || len(out.Others) > 0
}
