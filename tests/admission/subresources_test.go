// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kubepace/kubepace/bandwidth"
)

// Every way to write an update, by pods and by pods/status, gets the same verdict: capped, and nonsense refused.
func TestEveryKindOfUpdate(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M")
	at := `"/metadata/annotations/kubernetes.io~1egress-bandwidth"`
	merge := func(limit string) string { return `{"metadata":{"annotations":{"` + egress + `":"` + limit + `"}}}` }
	patches := map[string]struct {
		kind types.PatchType
		body func(limit string) string
	}{
		"merge patch":           {types.MergePatchType, merge},
		"strategic merge patch": {types.StrategicMergePatchType, merge},
		"json patch": {types.JSONPatchType, func(limit string) string {
			return `[{"op":"replace","path":` + at + `,"value":"` + limit + `"}]`
		}},
		"server-side apply": {types.ApplyPatchType, func(limit string) string {
			return `{"apiVersion":"v1","kind":"Pod",` + strings.TrimPrefix(merge(limit), "{")
		}},
	}
	force := true
	for door, subresources := range map[string][]string{"pods": nil, "status": {"status"}} {
		send := func(t *testing.T, name, how, limit string) (*corev1.Pod, error) {
			t.Helper()
			pods := shared.as(t, "").CoreV1().Pods(ns)
			if how == "put" {
				p := podNow(t, ns, name)
				p.Annotations[egress] = limit
				if subresources == nil {
					return pods.Update(t.Context(), p, metav1.UpdateOptions{})
				}
				return pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
			}
			options := metav1.PatchOptions{}
			if patches[how].kind == types.ApplyPatchType {
				options = metav1.PatchOptions{FieldManager: "author", Force: &force}
			}
			return pods.Patch(t.Context(), name, patches[how].kind, []byte(patches[how].body(limit)), options, subresources...)
		}
		for _, how := range []string{"put", "merge patch", "strategic merge patch", "json patch", "server-side apply"} {
			t.Run(door+", "+how, func(t *testing.T) {
				name := door + "-" + strings.ReplaceAll(how, " ", "-")
				mustCreate(t, ns, pod(name, egress, "10M"))
				got, err := send(t, name, how, "1G")
				if err != nil {
					t.Fatal(err)
				}
				requireLimits(t, got, egress, "50M", requested, "1G", source, "capped")
				_, err = send(t, name, how, "10 megabits")
				requireRefused(t, err, fieldName, `"10 megabits"`)
				requireLimits(t, podNow(t, ns, name), egress, "50M", requested, "1G", source, "capped")
			})
		}
	}
}

// pods/ephemeralcontainers and pods/resize carry a whole pod: the annotations in it reach nothing, and they work on a pod
// that today's policy would refuse.
func TestDoorsThatChangeNoLimit(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMode, "off")
	sized := pod("p", egress, "1G")
	sized.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: mustQuantity("100m")}
	mustCreate(t, ns, sized)
	relabel(t, ns, `{"`+bandwidth.LabelMode+`":null,"`+bandwidth.LabelMax+`":"50M","`+bandwidth.LabelOverMax+`":"deny"}`)
	eventually(t, "the new labels", func() bool {
		_, err := shared.as(t, "").CoreV1().Pods(ns).Create(t.Context(), pod("probe", egress, "1G"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil
	})
	pods := shared.as(t, "").CoreV1().Pods(ns)

	p := podNow(t, ns, "p")
	p.Annotations[egress] = "9G"
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "i"}}}
	if _, err := pods.UpdateEphemeralContainers(t.Context(), "p", p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p = podNow(t, ns, "p")
	requireLimits(t, p, egress, "1G")
	if len(p.Spec.EphemeralContainers) != 1 {
		t.Error("no ephemeral container was added")
	}

	p.Annotations[egress] = "9G"
	p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = mustQuantity("200m")
	if _, err := pods.UpdateResize(t.Context(), "p", p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p = podNow(t, ns, "p")
	requireLimits(t, p, egress, "1G")
	if got := p.Spec.Containers[0].Resources.Requests.Cpu().String(); got != "200m" {
		t.Errorf("not resized: %s", got)
	}

	// An Eviction has annotations of its own, and goes through.
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns, Annotations: pairs([]string{egress, "9G"})}}
	if err := pods.EvictV1(t.Context(), eviction); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the eviction: %v", err)
	}
}

// The kubelet's copy of a static pod comes in as it is, whatever it says; so do pods on their way out.
func TestLeftAlone(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelOverMax, "deny")
	mirror := pod("mirror", corev1.MirrorPodAnnotationKey, "x", egress, "10m")
	mirror.Spec.NodeName = "node"
	requireLimits(t, mustCreate(t, ns, mirror), egress, "10m")

	dying := pod("dying", egress, "10M")
	dying.Finalizers = []string{"tests.kubepace.dev/hold"}
	mustCreate(t, ns, dying)
	pods := shared.as(t, "").CoreV1().Pods(ns)
	if err := pods.Delete(t.Context(), "dying", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := annotate(t, shared.as(t, ""), podNow(t, ns, "dying"), `{"`+egress+`":"9G"}`); err != nil {
		t.Errorf("a pod that is being deleted: %v", err)
	}
	free, err := json.Marshal([]map[string]any{{"op": "remove", "path": "/metadata/finalizers"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Patch(t.Context(), "dying", types.JSONPatchType, free, metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}
