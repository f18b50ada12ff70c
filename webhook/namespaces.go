// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Namespaces finds a namespace's labels.
type Namespaces interface {
	Labels(ctx context.Context, name string) (map[string]string, error)
}

// NamespaceReader reads from an informer's cache, and from the API server what the cache has not seen yet: pods often
// come a millisecond after their namespace.
type NamespaceReader struct {
	Cache client.Reader
	Live  client.Reader
}

var _ Namespaces = (*NamespaceReader)(nil)

// NamespaceMetadata is the object that the cache holds for a namespace: its metadata only.
func NamespaceMetadata() *metav1.PartialObjectMetadata {
	ns := &metav1.PartialObjectMetadata{}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ns
}

// Labels returns the namespace's labels, which the caller must not change.
func (r *NamespaceReader) Labels(ctx context.Context, name string) (map[string]string, error) {
	ns := NamespaceMetadata()
	key := client.ObjectKey{Name: name}
	err := r.Cache.Get(ctx, key, ns, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		ns = NamespaceMetadata()
		err = r.Live.Get(ctx, key, ns)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace %q: %w", name, err)
	}
	return ns.Labels, nil
}
