// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// advertised is what a node advertises, as "capacity" or, where the two differ, "capacity/allocatable".
func (c *cluster) advertised(t *testing.T, name string) string {
	t.Helper()
	n := &corev1.Node{}
	must(t, c.Client.Get(t.Context(), client.ObjectKey{Name: name}, n))
	text := func(list corev1.ResourceList) string {
		if q, ok := list[bandwidth.Resource]; ok {
			return q.String()
		}
		return ""
	}
	capacity, allocatable := text(n.Status.Capacity), text(n.Status.Allocatable)
	if capacity != allocatable {
		return capacity + "/" + allocatable
	}
	return capacity
}

func (c *cluster) waitAdvertised(t *testing.T, n, want string) {
	t.Helper()
	var got string
	eventually(t, n+" to advertise "+want, func() bool { got = c.advertised(t, n); return got == want })
}

// waitEvent waits for an event on a node.
func (c *cluster) waitEvent(t *testing.T, n, reason, message string) {
	t.Helper()
	eventually(t, "the event "+reason+" on "+n, func() bool {
		events, err := c.admin.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,involvedObject.name=" + n})
		must(t, err)
		return slices.ContainsFunc(events.Items, func(e corev1.Event) bool { return e.Reason == reason && strings.Contains(e.Message, message) })
	})
}

func TestAdvertise(t *testing.T) {
	c := need(t)
	const n = "advertise-1"
	a := startAgent(t, c.node(t, n), n, "10G", lasting, nil)
	c.waitAdvertised(t, n, "10G")
	c.waitEvent(t, n, "EgressBandwidthAdvertised", "node advertises 10G of kubepace.io/egress-bandwidth")

	// Never less than what is bound: pods that have ended do not count.
	ns := c.namespace(t)
	for name, amount := range map[string]string{"big": "12G", "more": "3G", "done": "50G"} {
		pod := c.pod(ns, name, n, "1G")
		pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{bandwidth.Resource: quantity(amount)}, Limits: corev1.ResourceList{bandwidth.Resource: quantity(amount)},
		}
		c.create(t, pod)
		if name == "done" {
			pod.Status.Phase = corev1.PodSucceeded
			must(t, c.Client.Status().Update(t.Context(), pod))
		}
	}
	c.waitAdvertised(t, n, "15G")
	must(t, c.admin.CoreV1().Pods(ns).Delete(t.Context(), "big", *metav1.NewDeleteOptions(0)))
	c.waitAdvertised(t, n, "10G")

	// A node that is made anew has it again, and so has one whose resource somebody took away.
	must(t, patch(t.Context(), c.admin, n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":null}}}`))
	c.waitAdvertised(t, n, "10G")

	// A node that cannot enforce loses it, by its absence and never as 0, and gets it back.
	a.fail(errors.New("list pods: no permission"))
	c.waitAdvertised(t, n, "")
	c.waitEvent(t, n, "EgressBandwidthWithdrawn", "list pods: no permission")
	a.fail(nil)
	c.waitAdvertised(t, n, "10G")

	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}
	must(t, c.Client.Delete(t.Context(), node))
	c.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
	// The token names the node of before by its name only.
	c.waitAdvertised(t, n, "10G")
}

// TestWithdrawalOfADeadAgent: an agent that ends leaves what its node advertises, so that its successor finds it; when
// none comes, the webhook's leader takes it away, and a late successor sets it again.
func TestWithdrawalOfADeadAgent(t *testing.T) {
	c := need(t)
	const n, alive = "dead-1", "alive-1"
	config := c.node(t, n)
	startAgent(t, c.node(t, alive), alive, "unbounded", briefly, nil)
	a := startAgent(t, config, n, "unbounded", briefly, nil)
	c.waitAdvertised(t, n, "90P")
	c.waitAdvertised(t, alive, "90P")
	bound := c.pod(c.namespace(t), "bound", n, "10M")
	c.create(t, bound)
	a.stop()
	if got := c.advertised(t, n); got != "90P" {
		t.Errorf("advertises %q once the agent has ended; want 90P, for its successor", got)
	}
	lease := &coordinationv1.Lease{}
	must(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: lab.SystemNamespace, Name: "kubepace-enforcer-" + n}, lease))
	if *lease.Spec.HolderIdentity != n || *lease.Spec.LeaseDurationSeconds != 6 {
		t.Errorf("lease %+v; want one of %s for 6 s", lease.Spec, n)
	}
	c.waitAdvertised(t, n, "")
	eventually(t, "the lease to be gone", func() bool {
		return apierrors.IsNotFound(c.Client.Get(t.Context(), client.ObjectKeyFromObject(lease), lease))
	})
	c.waitEvent(t, n, "EgressBandwidthWithdrawn", "lease has run out")
	if got := c.advertised(t, alive); got != "90P" {
		t.Errorf("a node whose agent is there advertises %q", got)
	}
	must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(bound), bound))
	if bound.DeletionTimestamp != nil || bound.Status.Phase != corev1.PodPending {
		t.Errorf("pod that is bound to the node: %+v; want it untouched", bound.Status)
	}
	startAgent(t, config, n, "unbounded", briefly, nil)
	c.waitAdvertised(t, n, "90P")
}
