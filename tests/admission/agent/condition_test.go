// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
)

func pathOf(r *http.Request) []string { return strings.Split(r.URL.Path, "/") }

// run gives a pod an address, as its kubelet would.
func (c *cluster) run(t *testing.T, pod *corev1.Pod, ip string) {
	t.Helper()
	before := pod.DeepCopy()
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	must(t, c.Client.Status().Patch(t.Context(), pod, client.StrategicMergeFrom(before))) // the agent may have written meanwhile
}

// condition is ours of a pod; nil where it has none.
func (c *cluster) condition(t *testing.T, pod *corev1.Pod) *corev1.PodCondition {
	t.Helper()
	got := &corev1.Pod{}
	must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), got))
	for i := range got.Status.Conditions {
		if got.Status.Conditions[i].Type == bandwidth.ConditionEnforced {
			return &got.Status.Conditions[i]
		}
	}
	return nil
}

// waitCondition waits for one that says this, and returns it. The message need only contain its text.
func (c *cluster) waitCondition(t *testing.T, pod *corev1.Pod, status corev1.ConditionStatus, reason, message string) *corev1.PodCondition {
	t.Helper()
	var got *corev1.PodCondition
	eventually(t, pod.Name+" to have the condition "+string(status)+", "+reason+", "+message, func() bool {
		got = c.condition(t, pod)
		return got != nil && got.Status == status && got.Reason == reason && strings.Contains(got.Message, message)
	})
	return got
}

func (c *cluster) limit(t *testing.T, pod *corev1.Pod, limit string) {
	t.Helper()
	data := `{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":` + limit + `}}}`
	must(t, c.Client.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(data))))
}

func TestConditionComesChangesAndGoes(t *testing.T) {
	c := need(t)
	const n = "condition-1"
	a := startAgent(t, c.node(t, n), n, "unbounded", lasting, nil)
	ns := c.namespace(t)
	free, web := c.pod(ns, "free", n, ""), c.pod(ns, "web", n, "10M")
	c.create(t, free)
	c.create(t, web)
	a.at("10.0.0.1", answer{found: veth(7, "veth12ab")})
	c.run(t, free, "10.0.0.2")
	c.run(t, web, "10.0.0.1")
	first := c.waitCondition(t, web, corev1.ConditionTrue, "Pacing", "10M on veth12ab by pacing; local delivery policed")
	if first.LastTransitionTime.IsZero() {
		t.Error("the condition has no time")
	}
	c.limit(t, web, `"20M"`)
	second := c.waitCondition(t, web, corev1.ConditionTrue, "Pacing", "20M on veth12ab by pacing")
	if !second.LastTransitionTime.Equal(&first.LastTransitionTime) {
		t.Errorf("transition at %v, then %v; want the same: it was true all the time", first.LastTransitionTime, second.LastTransitionTime)
	}
	// Nothing changes: nothing is written, whatever is compared.
	writes := a.wire.count()
	for range 3 {
		a.Poke(enforcer.Resync)
		must(t, c.Client.Patch(t.Context(), web.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`))))
	}
	c.limit(t, web, `"20 megabits"`)
	c.waitCondition(t, web, corev1.ConditionTrue, "LastGoodLimit", `20M on veth12ab by pacing; local delivery policed; metadata.annotations[kubernetes.io/egress-bandwidth]: "20 megabits" is not`)
	if got := a.wire.count() - writes; got != 1 {
		t.Errorf("%d writes; want one, of the one change", got)
	}
	c.limit(t, web, `null`)
	eventually(t, "the condition to go", func() bool { return c.condition(t, web) == nil })
	pod := &corev1.Pod{}
	must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(web), pod))
	if len(pod.Status.Conditions) != 1 || pod.Status.Conditions[0].Type != corev1.PodReady {
		t.Errorf("conditions %v; want the kubelet's, untouched", pod.Status.Conditions)
	}
	if got := c.condition(t, free); got != nil {
		t.Errorf("an unlimited pod has the condition %v", got)
	}
}

func TestConditionSaysWhyNot(t *testing.T) {
	c := need(t)
	const n = "reasons-1"
	a := startAgent(t, c.node(t, n), n, "unbounded", lasting, nil)
	ns := c.namespace(t)
	type want struct{ limit, reason, message string }
	wants := map[*corev1.Pod]want{}
	pod := func(name, ip string, a func(), w want) {
		p := c.pod(ns, name, n, w.limit)
		p.Spec.HostNetwork = name == "host-network"
		c.create(t, p)
		a()
		c.run(t, p, ip)
		wants[p] = w
	}
	find := func(ip string, x answer) func() { return func() { a.at(ip, x) } }
	held := veth(8, "veth8")
	held.Unheld = []string{"net1 (macvlan)"}
	pod("host-network", "10.0.1.1", func() {}, want{"10M", "HostNetwork", "10M is not enforced: the pod shares the node's network namespace"})
	pod("macvlan", "10.0.1.2", find("10.0.1.2", answer{err: &device.NoHostVethError{Interfaces: []string{"eth0 (macvlan)"}}}), want{"10M", "NoHostDevice", "10M is not enforced: no host veth: the pod has eth0 (macvlan)"})
	pod("multus", "10.0.1.3", find("10.0.1.3", answer{found: held}), want{"10M", "NotAllHeld", "not all that the pod sends is held: it has net1 (macvlan) as well"})
	pod("lost", "10.0.1.4", func() {}, want{"10M", "DeviceNotFound", "no network namespace under /run/netns has the address 10.0.1.4"})
	pod("twice", "10.0.1.5", find("10.0.1.5", answer{err: &device.AmbiguousError{IP: netip.MustParseAddr("10.0.1.5"), Paths: []string{"/a", "/b"}}}), want{"10M", "AmbiguousAddress", "in several network namespaces: /a, /b"})
	pod("shared", "10.0.1.8", find("10.0.1.8", answer{found: veth(12, "veth12")}), want{"10M", "OtherLimiter", "10M is not enforced: another limiter is in charge: the CNI bandwidth plugin limits what the pod sends (tbf on veth12)"})
	pod("wordy", "10.0.1.6", find("10.0.1.6", answer{found: veth(9, "veth9")}), want{"10 megabits", "InvalidLimit", `"10 megabits" is not`})
	for p, w := range wants {
		c.waitCondition(t, p, corev1.ConditionFalse, w.reason, w.message)
	}
	a.mu.Lock()
	a.setErr = errors.New("attach tcx to veth10: no memory")
	a.mu.Unlock()
	pod("refused", "10.0.1.7", find("10.0.1.7", answer{found: veth(10, "veth10")}), want{limit: "10M"})
	for p := range wants {
		if p.Name == "refused" {
			c.waitCondition(t, p, corev1.ConditionFalse, "Failed", "10M is not enforced: attach tcx to veth10: no memory")
		}
	}
}

// TestNodeThatCannotEnforce: its agent stays, and says so on every limited pod, at /readyz, and to the scheduler.
func TestNodeThatCannotEnforce(t *testing.T) {
	c := need(t)
	const n = "lacking-1"
	lacks := &datapath.LacksError{Kernel: "4.4.0", What: "bpf(2) (CONFIG_BPF_SYSCALL)", Err: errors.New("create map: function not implemented")}
	config := c.node(t, n)
	must(t, patch(t.Context(), c.admin, n, `{"status":{"capacity":{"kubepace.io/egress-bandwidth":"10G"},"allocatable":{"kubepace.io/egress-bandwidth":"10G"}}}`))
	ns := c.namespace(t)
	web := c.pod(ns, "web", n, "10M")
	c.create(t, web)
	c.run(t, web, "10.0.0.1")
	a := startAgent(t, config, n, "10G", lasting, &enforcer.Opening{Open: func() (*datapath.Datapath, error) { return nil, lacks }})
	a.at("10.0.0.1", answer{found: veth(7, "veth7")})
	c.waitCondition(t, web, corev1.ConditionFalse, "KernelLacks", "10M is not enforced: no limit can be set on this node: open datapath: kernel 4.4.0 lacks bpf(2) (CONFIG_BPF_SYSCALL)")
	if err := a.Readiness(); err == nil || !strings.Contains(err.Error(), "lacks bpf(2)") {
		t.Errorf("readiness %v; want the reason", err)
	}
	eventually(t, "the node to advertise nothing", func() bool { return c.advertised(t, n) == "" })
}

// TestConditionAfterOutage: what changed while the API server refused writes is written when it is back, once.
func TestConditionAfterOutage(t *testing.T) {
	c := need(t)
	const n = "outage-1"
	a := startAgent(t, c.node(t, n), n, "unbounded", lasting, nil)
	ns := c.namespace(t)
	web := c.pod(ns, "web", n, "10M")
	c.create(t, web)
	a.at("10.0.0.1", answer{found: veth(7, "veth7")})
	c.run(t, web, "10.0.0.1")
	c.waitCondition(t, web, corev1.ConditionTrue, "Pacing", "10M on veth7")
	a.wire.set(true)
	writes := a.wire.count()
	for _, limit := range []string{"11M", "12M", "13M"} {
		c.limit(t, web, `"`+limit+`"`)
		eventually(t, "the loop to set "+limit, func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.states[string(web.UID)].Rate.String() == limit
		})
	}
	a.wire.set(false)
	c.waitCondition(t, web, corev1.ConditionTrue, "Pacing", "13M on veth7")
	if got := a.wire.count() - writes; got != 1 {
		t.Errorf("%d writes; want only the latest word", got)
	}
}
