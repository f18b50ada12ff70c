// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubepace/kubepace/enforcer/condition"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

func quantity(text string) resource.Quantity { return resource.MustParse(text) }

func clientsOf(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// TestAgentWrites: an agent writes what is its own on its own node, by its pod's token, and nothing else.
func TestAgentWrites(t *testing.T) {
	c := need(t)
	const n, other = "writes-1", "writes-2"
	config := c.node(t, n)
	c.node(t, other)
	ns := c.namespace(t)
	own, strange, unbound := c.pod(ns, "own", n, "10M"), c.pod(ns, "strange", other, "10M"), c.pod(ns, "unbound", "", "10M")
	for _, pod := range []*corev1.Pod{own, strange, unbound} {
		c.create(t, pod)
	}
	const oursOnly = "changes the condition kubepace.io/EgressEnforced only"
	mine := `{"status":{"conditions":[{"type":"kubepace.io/EgressEnforced","status":"True","reason":"Pacing","message":"10M"}]}}`
	for name, w := range map[string]struct{ pod, data, why string }{
		"condition":           {"own", mine, ""},
		"another node's":      {"strange", mine, "own node's pods only"},
		"no node's":           {"unbound", mine, "own node's pods only"},
		"phase":               {"own", `{"status":{"phase":"Failed"}}`, oursOnly + ": no other status"},
		"address":             {"own", `{"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}`, oursOnly + ": no other status"},
		"readiness":           {"own", `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, oursOnly + ": no other condition"},
		"annotation":          {"own", `{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":"1G"}}}`, oursOnly + ": no metadata"},
		"label":               {"own", `{"metadata":{"labels":{"app":"x"}}}`, oursOnly + ": no metadata"},
		"finalizer":           {"own", `{"metadata":{"finalizers":["example.com/x"]}}`, oursOnly + ": no metadata"},
		"condition and label": {"own", `{"metadata":{"labels":{"app":"x"}},` + mine[1:], oursOnly + ": no metadata"},
	} {
		_, err := clientsOf(t, config).CoreV1().Pods(ns).Patch(t.Context(), w.pod, types.StrategicMergePatchType, []byte(w.data), metav1.PatchOptions{}, "status")
		check(t, "pod, "+name, err, w.why)
	}
	byToken := condition.ByAPI(clientsOf(t, config).CoreV1())
	identity := datapath.Pod{Namespace: ns, Name: own.Name, UID: string(own.UID)}
	check(t, "condition away", byToken(t.Context(), identity, nil), "")
	// A pod that was there before under the same name is gone, and not tried again and again.
	former := identity
	former.UID = "11111111-2222-3333-4444-555555555555"
	if err := byToken(t.Context(), former, nil); !apierrors.IsConflict(err) {
		t.Errorf("condition of a former pod: %v; want a conflict", err)
	}

	const ourResource = "changes the resource kubepace.io/egress-bandwidth only"
	for name, w := range map[string]struct{ node, data, why string }{
		"resource":       {n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"10G"},"allocatable":{"kubepace.io/egress-bandwidth":"10G"}}}`, ""},
		"another node's": {other, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"10G"}}}`, "own node only"},
		"zero":           {n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"0"}}}`, "never by 0"},
		"cpu":            {n, `{"status":{"capacity":{"cpu":"64"}}}`, ourResource + ": no other resource"},
		"no cpu":         {n, `{"status":{"allocatable":{"cpu":null}}}`, ourResource + ": no other resource"},
		"condition":      {n, `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, ourResource + ": no other status"},
		"address":        {n, `{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"}]}}`, ourResource + ": no other status"},
		"label":          {n, `{"metadata":{"labels":{"app":"x"}}}`, ourResource + ": no metadata"},
	} {
		check(t, "node, "+name, patch(t.Context(), clientsOf(t, config), w.node, w.data), w.why)
	}
	check(t, "resource away", patch(t.Context(), clientsOf(t, config), n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":null},"allocatable":{"kubepace.io/egress-bandwidth":null}}}`), "")
	checkLeases(t, clientsOf(t, config), n, other)
	checkEvents(t, clientsOf(t, config), ns, n, other)
	checkBeyondRBAC(t, clientsOf(t, config), ns, n)
}

// check wants an error that says why, or none.
func check(t *testing.T, what string, err error, why string) {
	t.Helper()
	if why != "" {
		refused(t, what, err, why)
	} else if err != nil {
		t.Errorf("%s: %v; want it allowed", what, err)
	}
}

func checkLeases(t *testing.T, clients *kubernetes.Clientset, n, other string) {
	t.Helper()
	lease := func(name, holder string, seconds int32) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds}}
	}
	for _, w := range []struct {
		lease *coordinationv1.Lease
		why   string
	}{
		{lease("kubepace-enforcer-"+other, other, 60), "own node's Lease only"},
		{lease("kubepace-enforcer-"+n, other, 60), "own node's Lease only"},
		{lease("kubepace-webhook-leader", n, 60), "own node's Lease only"},
		{lease("kubepace-enforcer-"+n, n, 3600), "10 minutes at most"},
		{lease("kubepace-enforcer-"+n, n, 60), ""},
	} {
		_, err := clients.CoordinationV1().Leases(lab.SystemNamespace).Create(t.Context(), w.lease, metav1.CreateOptions{})
		check(t, "create lease "+w.lease.Name, err, w.why)
	}
	_, err := clients.CoordinationV1().Leases("kube-node-lease").Create(t.Context(), lease("kubepace-enforcer-"+n, n, 60), metav1.CreateOptions{})
	refused(t, "lease elsewhere", err, "cannot create resource")
	_, err = clients.CoordinationV1().Leases(lab.SystemNamespace).Patch(t.Context(), "kubepace-webhook-leader", types.MergePatchType, []byte(`{"spec":{"holderIdentity":"me"}}`), metav1.PatchOptions{})
	refused(t, "the leader's lease", err, "own node's Lease only")
	refused(t, "delete lease", clients.CoordinationV1().Leases(lab.SystemNamespace).Delete(t.Context(), "kubepace-enforcer-"+n, metav1.DeleteOptions{}), "cannot delete")
}

func checkEvents(t *testing.T, clients *kubernetes.Clientset, ns, n, other string) {
	t.Helper()
	for host, why := range map[string]string{n: "", other: "own name and node", "": "own name and node"} {
		_, err := clients.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "own."}, Source: corev1.EventSource{Component: "kubepace-enforcer", Host: host},
			InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: ns, Name: "own"}, Reason: "Test", Type: corev1.EventTypeNormal,
		}, metav1.CreateOptions{})
		check(t, "event from "+host, err, why)
	}
}

func checkBeyondRBAC(t *testing.T, clients *kubernetes.Clientset, ns, n string) {
	t.Helper()
	ctx := t.Context()
	for what, do := range map[string]func() error{
		"patch a pod": func() error {
			_, err := clients.CoreV1().Pods(ns).Patch(ctx, "own", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
			return err
		},
		"update a pod's status": func() error {
			pod, err := clients.CoreV1().Pods(ns).Get(ctx, "own", metav1.GetOptions{})
			if err == nil {
				_, err = clients.CoreV1().Pods(ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
			}
			return err
		},
		"delete a pod": func() error { return clients.CoreV1().Pods(ns).Delete(ctx, "own", metav1.DeleteOptions{}) },
		"patch a node": func() error {
			_, err := clients.CoreV1().Nodes().Patch(ctx, n, types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
			return err
		},
		"delete a node": func() error { return clients.CoreV1().Nodes().Delete(ctx, n, metav1.DeleteOptions{}) },
		"read a secret": func() error {
			_, err := clients.CoreV1().Secrets(lab.SystemNamespace).Get(ctx, "kubepace-webhook-tls", metav1.GetOptions{})
			return err
		},
		"read namespaces": func() error { _, err := clients.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); return err },
	} {
		refused(t, what, do(), "cannot")
	}
}

// TestTokenWithoutNode: a token that is bound to no pod says nothing of any node, and may write nothing.
func TestTokenWithoutNode(t *testing.T) {
	c := need(t)
	const n = "tokens-1"
	c.node(t, n)
	ns := c.namespace(t)
	pod := c.pod(ns, "own", n, "10M")
	c.create(t, pod)
	clients := clientsOf(t, c.token(t, nil))
	to := &corev1.PodCondition{Type: "kubepace.io/EgressEnforced", Status: corev1.ConditionTrue}
	refused(t, "condition", condition.ByAPI(clients.CoreV1())(t.Context(), datapath.Pod{Namespace: ns, Name: pod.Name, UID: string(pod.UID)}, to), "token names no node")
	refused(t, "resource", patch(t.Context(), clients, n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"10G"}}}`), "token names no node")
	_, err := clients.CoordinationV1().Leases(lab.SystemNamespace).Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "kubepace-enforcer-" + n}}, metav1.CreateOptions{})
	refused(t, "lease", err, "token names no node")
}

// TestWebhookWithdrawsOnly: of nodes, the webhook takes our resource away, and does nothing else.
func TestWebhookWithdrawsOnly(t *testing.T) {
	c := need(t)
	const n = "withdraw-1"
	c.node(t, n)
	set := func(ctx context.Context, data string) error { return patch(ctx, c.admin, n, data) }
	if err := set(t.Context(), `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"10G"}}}`); err != nil {
		t.Fatal(err)
	}
	clients := clientsOf(t, c.as(lab.ServiceAccount))
	const only = "takes away the resource kubepace.io/egress-bandwidth only"
	for name, w := range map[string]struct{ data, why string }{
		"set":       {`{"status":{"capacity":{"kubepace.io/egress-bandwidth":"1"}}}`, "their own agents set it"},
		"keep":      {`{"status":{"allocatable":{"kubepace.io/egress-bandwidth":"1"}}}`, "their own agents set it"},
		"cpu":       {`{"status":{"capacity":{"kubepace.io/egress-bandwidth":null,"cpu":"1"}}}`, only + ": no other resource"},
		"condition": {`{"status":{"capacity":{"kubepace.io/egress-bandwidth":null},"conditions":[{"type":"Ready","status":"False"}]}}`, only + ": no other status"},
		"label":     {`{"metadata":{"labels":{"a":"b"}}}`, only + ": no metadata"},
	} {
		refused(t, name, patch(t.Context(), clients, n, w.data), w.why)
	}
	check(t, "withdraw", patch(t.Context(), clients, n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":null},"allocatable":{"kubepace.io/egress-bandwidth":null}}}`), "")
}
