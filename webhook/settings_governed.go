// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

// Governed tells which namespaces admission sees: those that the mutating webhook's namespaceSelector matches. The
// selector in the cluster is the one truth; whoever exempts one more namespace edits it there and nowhere else.
type Governed struct {
	// Reader finds the MutatingWebhookConfiguration.
	Reader client.Reader
	// Configuration is its name.
	Configuration string
}

// PodsWebhook is the name of the mutating webhook for pods in the configuration.
const PodsWebhook = "pods.mutate.kubepace.io"

// Namespace reports whether a namespace is seen, its mode aside: "off" is its own way of not being seen, and may change.
func (g Governed) Namespace(ctx context.Context, name string, nsLabels map[string]string) (bool, error) {
	config := &admissionv1.MutatingWebhookConfiguration{}
	if err := g.Reader.Get(ctx, client.ObjectKey{Name: g.Configuration}, config, client.UnsafeDisableDeepCopy); err != nil {
		return false, fmt.Errorf("read MutatingWebhookConfiguration %q: %w", g.Configuration, err)
	}
	set := labels.Set{corev1.LabelMetadataName: name}
	for key, value := range nsLabels {
		if key != bandwidth.LabelMode {
			set[key] = value
		}
	}
	for i := range config.Webhooks {
		if config.Webhooks[i].Name != PodsWebhook {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(config.Webhooks[i].NamespaceSelector)
		if err != nil {
			return false, fmt.Errorf("read namespaceSelector of webhook %q: %w", PodsWebhook, err)
		}
		return selector.Matches(set), nil
	}
	return false, fmt.Errorf("read MutatingWebhookConfiguration %q: it holds no webhook %q", g.Configuration, PodsWebhook)
}
