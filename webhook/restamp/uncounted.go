// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// uncounted are the running pods of a namespace that its quotas do not count: Kubernetes counts a pod when it is made, and
// never again.
type uncounted struct {
	pods      int
	unlimited int            // those without a limit
	bits      bandwidth.Rate // limits of the others together, bits/s
}

// countUncounted is pure; names are of the first few.
func countUncounted(pods []corev1.Pod) (u uncounted, names []string) {
	const few = 3
	for i := range pods {
		pod := policyPod(&pods[i])
		if pods[i].DeletionTimestamp != nil || pod.HostNetwork || pod.Mirror || pod.Charge() > 0 {
			continue
		}
		u.pods++
		if pod.Standing.Limit == 0 {
			u.unlimited++
		}
		u.bits += pod.Standing.Limit
		if len(names) < few {
			names = append(names, pods[i].Name)
		}
	}
	if u.pods > few {
		names = append(names, "…")
	}
	return u, names
}

// reportUncounted keeps the metrics and tells by an event where there are more such pods than were told of.
func (r *reconciler) reportUncounted(ctx context.Context, name string, p policy.Policy) error {
	var u uncounted
	var names []string
	if len(p.Quotas) > 0 && p.Mode == bandwidth.ModeEnforce {
		pods := &corev1.PodList{}
		if err := r.cache.List(ctx, pods, client.InNamespace(name), client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list pods of %q: %w", name, err)
		}
		u, names = countUncounted(pods.Items)
	}
	r.metrics.uncounted(name, u)
	if r.state.uncountedChanged(name, u) {
		r.events.Event(namespaceRef(name), corev1.EventTypeWarning, reasonNsUncounted, describeUncounted(u, p.Quotas, names))
	}
	return nil
}

func describeUncounted(u uncounted, quotas, names []string) string {
	text := fmt.Sprintf("%s does not count %d running pods that are older (%s)", strings.Join(quotas, ", "), u.pods, strings.Join(names, ", "))
	switch {
	case u.pods == u.unlimited:
		text += ", which have no limit"
	case u.unlimited == 0:
		text += fmt.Sprintf(", which may send %v together", u.bits)
	default:
		text += fmt.Sprintf(", of which %d have no limit and the others may send %v together", u.unlimited, u.bits)
	}
	return text + "; recreate them to have them counted"
}
