// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

func annotate(t *testing.T, r *recorder, p *corev1.Pod, annotations string, subresources ...string) (*corev1.Pod, error) {
	t.Helper()
	return r.CoreV1().Pods(p.Namespace).Patch(t.Context(), p.Name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":`+annotations+`}}`), metav1.PatchOptions{}, subresources...)
}

// Every change of our annotations gets the verdict that a new pod gets, by pods and by pods/status.
func TestUpdate(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelDefault, "25M")
	for name, door := range map[string][]string{"pods": nil, "pods-status": {"status"}} {
		t.Run(name, func(t *testing.T) {
			p := mustCreate(t, ns, pod(name, egress, "10M"))
			change := func(annotations string) *corev1.Pod {
				t.Helper()
				got, err := annotate(t, shared.as(t, ""), p, annotations, door...)
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			requireLimits(t, change(`{"`+egress+`":"2e7"}`), egress, "20M", requested, "2e7", source, "pod")
			requireLimits(t, change(`{"`+egress+`":"1G"}`), egress, "50M", requested, "1G", source, "capped")
			requireLimits(t, change(`{"`+source+`":"cluster-default"}`), egress, "50M", requested, "1G", source, "capped")
			requireLimits(t, change(`{"`+requested+`":"20k"}`), egress, "50M", source, "pod")
			requireLimits(t, change(`{"`+egress+`":"30M"}`), egress, "30M", source, "pod")
			requireLimits(t, change(`{"`+egress+`":null}`), egress, "25M", source, "namespace-default")
			_, err := annotate(t, shared.as(t, ""), p, `{"`+egress+`":"10 megabits"}`, door...)
			requireRefused(t, err, fieldName, `"10 megabits"`, `like "10M"`)
		})
	}
}

// What does not touch our annotations is none of our business, even on a pod that the policy would not admit today.
func TestUnrelatedUpdate(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMode, "off")
	p := mustCreate(t, ns, pod("p", egress, "1G"))
	// Denied, not capped: otherwise the pod would be re-stamped.
	relabel(t, ns, `{"`+bandwidth.LabelMode+`":null,"`+bandwidth.LabelMax+`":"50M","`+bandwidth.LabelOverMax+`":"deny"}`)
	eventually(t, "the new labels", func() bool {
		got, _, err := create(t, ns, pod("probe", egress, "1G"))
		if err == nil {
			_ = shared.Client.Delete(t.Context(), got)
		}
		return err != nil
	})
	got, err := annotate(t, shared.as(t, ""), p, `{"other":"1"}`)
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "1G")
	got, err = annotate(t, shared.as(t, ""), p, `{"other":"2"}`, "status")
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "1G")
}

func relabel(t *testing.T, namespace, labels string) {
	t.Helper()
	_, err := shared.as(t, "").CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// The API server merges a Binding's annotations into the pod: ours never get through, others do.
func TestBinding(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M")
	binding := func(name string) *corev1.Binding {
		return &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: pairs([]string{egress, "9G", requested, "9G", source, "pod", "other", "1"})},
			Target:     corev1.ObjectReference{Kind: "Node", Name: "node"},
		}
	}
	r := shared.as(t, "")
	doors := map[string]func(name string) error{
		"pods-binding": func(name string) error {
			return r.CoreV1().Pods(ns).Bind(t.Context(), binding(name), metav1.CreateOptions{})
		},
		"legacy-bindings": func(name string) error {
			return r.CoreV1().RESTClient().Post().Namespace(ns).Resource("bindings").Body(binding(name)).Do(t.Context()).Error()
		},
	}
	for name, bind := range doors {
		t.Run(name, func(t *testing.T) {
			r.warnings = nil
			mustCreate(t, ns, pod(name, egress, "10M"))
			err := bind(name)
			got, getErr := r.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
			if getErr != nil {
				t.Fatal(getErr)
			}
			requireLimits(t, got, egress, "10M", source, "pod")
			if err != nil {
				t.Fatalf("refused instead of mended: %v", err)
			}
			if got.Spec.NodeName != "node" || got.Annotations["other"] != "1" {
				t.Errorf("not bound, or without the others' annotations: %q %v", got.Spec.NodeName, got.Annotations)
			}
			if len(r.warnings) != 1 {
				t.Errorf("warnings %q", r.warnings)
			}
		})
	}
}

// The author keeps ownership of the annotation, also where admission changed it, and applies again without a conflict.
func TestServerSideApply(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M")
	apply := func(limit string) *corev1.Pod {
		t.Helper()
		config := corev1apply.Pod("p", ns).WithAnnotations(pairs([]string{egress, limit})).
			WithSpec(corev1apply.PodSpec().WithContainers(corev1apply.Container().WithName("c").WithImage("i")))
		got, err := shared.as(t, "").CoreV1().Pods(ns).Apply(t.Context(), config, metav1.ApplyOptions{FieldManager: "author"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	requireLimits(t, apply("1e7"), egress, "10M", requested, "1e7", source, "pod")
	requireLimits(t, apply("1e7"), egress, "10M", requested, "1e7", source, "pod")
	requireLimits(t, apply("1G"), egress, "50M", requested, "1G", source, "capped")
	requireLimits(t, apply("1G"), egress, "50M", requested, "1G", source, "capped")
	requireLimits(t, apply("20M"), egress, "20M", source, "pod")
}
