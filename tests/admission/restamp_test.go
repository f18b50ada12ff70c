// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

func podNow(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{}
	if err := shared.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// becomes waits for a pod's annotations of ours.
func becomes(t *testing.T, namespace, name string, want ...string) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	eventually(t, fmt.Sprintf("pod %s to have %q", name, want), func() bool {
		p = podNow(t, namespace, name)
		got := limits(p)
		for key, value := range pairs(want) {
			if got[key] != value {
				return false
			}
		}
		return len(got) == len(want)/2
	})
	return p
}

// eventsOn are the texts of the namespace's events about an object, with this reason.
func eventsOn(t *testing.T, namespace, kind, name, reason string) []string {
	t.Helper()
	list := &corev1.EventList{}
	if err := shared.Client.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		e := &list.Items[i]
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason {
			out = append(out, e.Message)
		}
	}
	return out
}

// requireEvent waits for an event that holds all these words.
func requireEvent(t *testing.T, namespace, kind, name, reason string, words ...string) {
	t.Helper()
	var seen []string
	eventually(t, fmt.Sprintf("event %s on %s %s with %q", reason, kind, name, words), func() bool {
		seen = eventsOn(t, namespace, kind, name, reason)
		return slices.ContainsFunc(seen, func(text string) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
		})
	})
}

// A changed policy reaches the pods that are running, both ways, and says so on the pod and on the namespace.
func TestRestamp(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelDefault, "25M")
	mustCreate(t, ns, pod("greedy", egress, "1G"))
	mustCreate(t, ns, pod("modest", egress, "10M"))
	mustCreate(t, ns, pod("silent"))
	spelt := mustCreate(t, ns, pod("spelt", egress, "3e7", "other", "1"))

	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"20M","`+bandwidth.LabelDefault+`":"5M"}`)
	becomes(t, ns, "greedy", egress, "20M", requested, "1G", source, "capped")
	becomes(t, ns, "silent", egress, "5M", source, "namespace-default")
	got := becomes(t, ns, "spelt", egress, "20M", requested, "3e7", source, "capped")
	if got.Annotations["other"] != "1" || got.UID != spelt.UID {
		t.Errorf("something else changed: %v", got.ObjectMeta)
	}
	requireEvent(t, ns, "Pod", "greedy", "EgressLimitChanged", "egress limit 50M → 20M", "1G asked", "label egress.kubepace.io/max")
	requireEvent(t, ns, "Pod", "silent", "EgressLimitChanged", "25M → 5M", "default (label egress.kubepace.io/default)")
	requireEvent(t, ns, "Namespace", ns, "EgressPolicyChanged", "default 5M", "maximum 20M", "of 4 running pods 3 get another limit")
	requireEvent(t, ns, "Namespace", ns, "EgressLimitsChanged", "3 lowered")

	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"200M","`+bandwidth.LabelDefault+`":null}`)
	becomes(t, ns, "greedy", egress, "200M", requested, "1G", source, "capped")
	becomes(t, ns, "silent", egress, "200M", source, "namespace-default")
	becomes(t, ns, "spelt", egress, "30M", requested, "3e7", source, "pod")

	relabel(t, ns, `{"`+bandwidth.LabelMax+`":null}`)
	becomes(t, ns, "greedy", egress, "1G", source, "pod")
	becomes(t, ns, "silent", egress, "10G", source, "cluster-default")
	requireLimits(t, podNow(t, ns, "modest"), egress, "10M", source, "pod")
	if mark, ok := podNow(t, ns, "modest").Annotations[bandwidth.AnnotationPolicy]; ok {
		t.Errorf("a pod that nothing concerned bears the mark %q", mark)
	}
	requireEvent(t, ns, "Pod", "greedy", "EgressLimitChanged", "200M → 1G", "as the pod asks")
}

// The author keeps the ownership of the annotation: applies again without a conflict, and sees no difference.
func TestRestampOwnership(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	apply := func(limit string) {
		t.Helper()
		config := corev1apply.Pod("p", ns).WithAnnotations(pairs([]string{egress, limit})).
			WithSpec(corev1apply.PodSpec().WithContainers(corev1apply.Container().WithName("c").WithImage("i")))
		if _, err := c.as(t, "").CoreV1().Pods(ns).Apply(t.Context(), config, metav1.ApplyOptions{FieldManager: "author"}); err != nil {
			t.Fatal(err)
		}
	}
	manifest := func(name string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","namespace":"` + ns + `","annotations":{"` + egress + `":"1G"}},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	}
	kubectl := func(input string, args ...string) (string, error) {
		cmd := exec.Command(c.Kubectl, append([]string{"--kubeconfig=" + c.admin}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	apply("1G")
	if out, err := kubectl(manifest("classic"), "apply", "-f", "-"); err != nil {
		t.Fatal(err, out)
	}
	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"20M"}`)
	for _, name := range []string{"p", "classic"} {
		p := becomes(t, ns, name, egress, "20M", requested, "1G", source, "capped")
		for _, m := range p.ManagedFields {
			if m.Manager == "kubepace-restamp" && (strings.Contains(m.FieldsV1.GetRawString(), egress) || !strings.Contains(m.FieldsV1.GetRawString(), bandwidth.AnnotationPolicy)) {
				t.Errorf("the controller owns %s", m.FieldsV1.GetRawString())
			}
		}
	}
	// Nothing differs from what the authors wrote, but for what kubectl diff always shows without a change: nothing.
	if out, err := kubectl(manifest("classic"), "diff", "-f", "-"); err != nil {
		t.Errorf("kubectl diff: %v\n%s", err, out)
	}
	if out, err := kubectl(manifest("p"), "diff", "--server-side", "--field-manager=author", "-f", "-"); err != nil {
		t.Errorf("kubectl diff --server-side: %v\n%s", err, out)
	}
	apply("1G")
	requireLimits(t, podNow(t, ns, "p"), egress, "20M", requested, "1G", source, "capped")
	apply("15M")
	requireLimits(t, podNow(t, ns, "p"), egress, "15M", source, "pod")
}

// Who would not be admitted today keeps running as before; the pod and the namespace say so.
func TestRestampRefused(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t)
	mustCreate(t, ns, pod("greedy", egress, "1G"))
	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"50M","`+bandwidth.LabelOverMax+`":"deny"}`)
	requireEvent(t, ns, "Pod", "greedy", "EgressLimitRefused", "would not be admitted today and keeps its egress limit (1G)", "is above", "50M")
	requireEvent(t, ns, "Namespace", ns, "EgressPolicyChanged", "1 would be refused today and keep what they have")
	requireLimits(t, podNow(t, ns, "greedy"), egress, "1G", source, "pod")
}

// A setting that cannot be read slips in: what it said before stays in force, also for new pods, and the namespace says
// what is wrong. A webhook that starts anew does not know what it said; even then a running pod gets no more.
func TestRestampBadSetting(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	mustCreate(t, ns, pod("greedy", egress, "1G"))
	// As in an outage: the check is passed by.
	withoutWebhook(t, "namespaces.settings.kubepace.io", func() {
		eventually(t, "the bad label to pass", func() bool {
			_, err := c.as(t, "").CoreV1().Namespaces().Patch(t.Context(), ns, types.MergePatchType,
				[]byte(`{"metadata":{"labels":{"`+bandwidth.LabelMax+`":"5OM"}}}`), metav1.PatchOptions{})
			return err == nil
		})
	})
	requireEvent(t, ns, "Namespace", ns, "EgressPolicyProblem", `label egress.kubepace.io/max: "5OM"`)
	requireEvent(t, ns, "Namespace", ns, "EgressPolicyProblem", "50M, what it said before, applies until it is mended")
	got, warnings, err := create(t, ns, pod("later", egress, "2G"))
	if err != nil || !strings.Contains(strings.Join(warnings, "\n"), "50M, what it said before, applies") {
		t.Errorf("%v %q", err, warnings)
	}
	requireLimits(t, got, egress, "50M", requested, "2G", source, "capped")
	requireLimits(t, podNow(t, ns, "greedy"), egress, "50M", requested, "1G", source, "capped")

	if err := c.webhook.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.webhook.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireEvent(t, ns, "Pod", "greedy", "EgressLimitHeld", "keeps its egress limit (50M)", `"5OM"`)
	requireLimits(t, podNow(t, ns, "greedy"), egress, "50M", requested, "1G", source, "capped")
	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"60M"}`)
	becomes(t, ns, "greedy", egress, "60M", requested, "1G", source, "capped")
}

// Of pods, the webhook's account may change our annotations and nothing else, and only by the status subresource.
func TestRestampRights(t *testing.T) {
	needCluster(t)
	ns := shared.namespace(t)
	p := mustCreate(t, ns, pod("p"))
	r := shared.as(t, lab.ServiceAccount)
	for name, body := range map[string]string{
		"another annotation":          `{"metadata":{"annotations":{"other":"1"}}}`,
		"a label":                     `{"metadata":{"labels":{"app":"x"}}}`,
		"status":                      `{"status":{"phase":"Failed"}}`,
		"a finalizer":                 `{"metadata":{"finalizers":["x.example.com/y"]}}`,
		"an annotation beside ours":   `{"metadata":{"annotations":{"` + bandwidth.AnnotationPolicy + `":"1","other":"1"}}}`,
		"somebody else's, taken away": `{"metadata":{"annotations":{"theirs":null}}}`,
	} {
		if _, err := annotate(t, shared.as(t, ""), p, `{"theirs":"1"}`); err != nil {
			t.Fatal(err)
		}
		_, err := r.CoreV1().Pods(ns).Patch(t.Context(), p.Name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, "status")
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "kubepace changes") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := annotate(t, r, p, `{"`+bandwidth.AnnotationPolicy+`":"x"}`); !apierrors.IsForbidden(err) {
		t.Errorf("patch pods: %v", err)
	}
	if _, err := annotate(t, r, p, `{"`+bandwidth.AnnotationPolicy+`":"x"}`, "status"); err != nil {
		t.Errorf("the mark: %v", err)
	}
}

// Pods that admission did not see are found when it is back; a controller that is killed in the middle goes on.
func TestRestampAfterOutage(t *testing.T) {
	c := needCluster(t)
	const many = 200
	ns, free := c.namespace(t, bandwidth.LabelMax, "50M"), c.namespace(t)
	for i := range many {
		mustCreate(t, ns, pod(fmt.Sprintf("p%d", i), egress, "1G"))
	}
	count := func(limit string) (n int) {
		list := &corev1.PodList{}
		if err := c.Client.List(t.Context(), list, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if list.Items[i].Annotations[egress] == limit {
				n++
			}
		}
		return n
	}
	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"20M"}`)
	eventually(t, "the work to begin", func() bool { return count("20M") > 0 })
	if err := c.webhook.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.webhook.Wait()
	done := count("20M")
	if done == many {
		t.Error("nothing left to go on with")
	}
	mustCreate(t, free, pod("unseen", egress, "1e12"))
	mustCreate(t, free, pod("silent"))
	if err := c.webhook.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all pods", func() bool { return count("20M") == many })
	becomes(t, free, "unseen", egress, "10G", requested, "1e12", source, "capped")
	becomes(t, free, "silent", egress, "10G", source, "cluster-default")
	requireEvent(t, free, "Namespace", free, "EgressLimitsChanged", "newly limited")
	t.Logf("%d of %d pods were done when it was killed", done, many)
}

func TestRestampMetrics(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	mustCreate(t, ns, pod("p", egress, "1G"))
	relabel(t, ns, `{"`+bandwidth.LabelMax+`":"20M"}`)
	becomes(t, ns, "p", egress, "20M", requested, "1G", source, "capped")
	eventually(t, "the metric", func() bool {
		body := c.scrape(t)
		return strings.Contains(body, `kubepace_restamp_pods_total{outcome="lowered"}`)
	})
}
