// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
)

// TestConditionInGovernedNamespaces: neither the policies on limits and totals nor our webhooks, there or not, stand in the
// way of a condition, also not on a pod that a policy of later would refuse.
func TestConditionInGovernedNamespaces(t *testing.T) {
	c := need(t)
	const n = "governed-1"
	a := startAgent(t, c.node(t, n), n, "unbounded", lasting, nil)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-"}}
	c.create(t, ns)
	pod := c.pod(ns.Name, "older", n, "80M")
	c.create(t, pod)
	a.at("10.0.2.1", answer{found: veth(7, "veth7")})
	c.run(t, pod, "10.0.2.1")
	c.waitCondition(t, pod, corev1.ConditionTrue, "Pacing", "80M on veth7")

	hard := corev1.ResourceList{bandwidth.QuotaKey: quantity("1G")}
	c.create(t, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "total"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}})
	must(t, c.webhook.Stop())
	defer func() {
		must(t, c.webhook.Start())
		must(t, c.webhook.WaitReady(t.Context()))
	}()
	must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(ns), ns))
	ns.Labels[bandwidth.LabelMax] = "50M" // below what the pod has
	must(t, c.Client.Update(t.Context(), ns))
	a.at("10.0.2.1", answer{found: veth(9, "veth9")})
	a.move()
	c.waitCondition(t, pod, corev1.ConditionTrue, "Pacing", "80M on veth9")
}
