// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

func mustQuantity(text string) resource.Quantity { return resource.MustParse(text) }

// named gives a LimitRange a name that messages show.
func named(name string, lr *corev1.LimitRange) *corev1.LimitRange {
	lr.GenerateName, lr.Name = "", name
	return lr
}

// Flags, labels and several LimitRanges: the tightest caps, and a refusal lists every one that is broken, by name.
func TestTightestWins(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelMin, "2M")
	for _, lr := range []*corev1.LimitRange{
		named("wide", limitRange(ns, corev1.LimitTypePod, "max", "30M")), named("tight", limitRange(ns, corev1.LimitTypePod, "max", "20M")),
		named("floor", limitRange(ns, corev1.LimitTypePod, "min", "3M")),
	} {
		if err := c.Client.Create(t.Context(), lr); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the limit ranges", func() bool {
		got, _, err := create(t, ns, &corev1.Pod{ObjectMeta: generated(egress, "20G"), Spec: pod("").Spec})
		return err == nil && got.Annotations[egress] == "20M"
	})
	got, warnings, err := create(t, ns, pod("capped", egress, "20G"))
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "20M", requested, "20G", source, "capped")
	if joined := strings.Join(warnings, "\n"); !strings.Contains(joined, `20G is above LimitRange "tight"'s maximum 20M`) {
		t.Errorf("warnings %q", warnings)
	}
	_, _, err = create(t, ns, pod("low", egress, "1M"))
	requireRefused(t, err, `is below namespace "`+ns+`"'s minimum 2M (label egress.kubepace.io/min)`,
		`is below LimitRange "floor"'s minimum 3M`, `write at least "3M"`)

	relabel(t, ns, `{"`+bandwidth.LabelOverMax+`":"deny"}`)
	eventually(t, "denial", func() bool {
		_, _, err = create(t, ns, &corev1.Pod{ObjectMeta: generated(egress, "20G"), Spec: pod("").Spec})
		return err != nil
	})
	requireRefused(t, err, `is above namespace "`+ns+`"'s maximum 50M (label egress.kubepace.io/max)`, `is above LimitRange "wide"'s maximum 30M`,
		`is above LimitRange "tight"'s maximum 20M`, `is above the cluster's maximum 10G (flag --cluster-max)`, `write at most "20M"`)
}

// LimitRange and ResourceQuota entries that cannot be applied and slipped in while the check was away: the tightest
// setting that can be read holds, authors are warned, and the namespace has an event that names the object.
func TestBadObjectsFailSafe(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelDefault, "25M")
	bad := named("typo", limitRange(ns, corev1.LimitTypePod, "max", "2P"))
	withoutWebhook(t, "limitranges.settings.kubepace.io", func() {
		eventually(t, "the bad limit range to pass", func() bool { return c.Client.Create(t.Context(), bad) == nil })
	})
	var got *corev1.Pod
	var warnings []string
	eventually(t, "the limit range to be known", func() bool {
		var err error
		got, warnings, err = create(t, ns, &corev1.Pod{ObjectMeta: generated(egress, "1G"), Spec: pod("").Spec})
		return err == nil && len(warnings) > 0 && got.Annotations[egress] != "1G"
	})
	requireLimits(t, got, egress, "25M", requested, "1G", source, "capped")
	if joined := strings.Join(warnings, "\n"); !strings.Contains(joined, `LimitRange "typo": max "2P" is above the largest limit`) {
		t.Errorf("warnings %q", warnings)
	}
	requireEvent(t, ns, "Namespace", ns, "EgressPolicyProblem", `LimitRange "typo"`, `"2P"`)

	other := c.namespace(t)
	q := quota(other, "", "limits."+bandwidth.Resource, "1G")
	q.GenerateName, q.Name = "", "shown"
	withoutWebhook(t, "resourcequotas.settings.kubepace.io", func() {
		eventually(t, "the bad quota to pass", func() bool { return c.Client.Create(t.Context(), q) == nil })
	})
	requireEvent(t, other, "Namespace", other, "EgressPolicyProblem", `ResourceQuota "shown"`, "never counts it", "write requests.kubepace.io/egress-bandwidth")
	eventually(t, "the metric", func() bool {
		body := c.scrape(t)
		return strings.Contains(body, `kubepace_policy_problems{namespace="`+other+`"} 1`)
	})
	// Mended, nothing is left to complain of.
	if err := c.Client.Patch(t.Context(), q, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"hard":{"limits.`+bandwidth.Resource+`":null}}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the metric to go", func() bool {
		body := c.scrape(t)
		return !strings.Contains(body, `kubepace_policy_problems{namespace="`+other+`"}`)
	})
}
