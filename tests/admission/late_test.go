// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// lateWebhook installs one of somebody else's behind ours.
func lateWebhook(t *testing.T, namespace, patch string, stubborn bool) {
	t.Helper()
	stop, err := lab.Late{Namespace: namespace, Patch: patch, Stubborn: stubborn}.Start(t.Context(), shared.Client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// createDry creates a pod as a dry run, again and again until the late webhook has had its hands on it.
func createDry(t *testing.T, namespace string, p *corev1.Pod) (got *corev1.Pod, err error) {
	t.Helper()
	eventually(t, "the late webhook", func() bool {
		got, err = shared.as(t, "").CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil || got.Annotations[lab.LateMark] != ""
	})
	return got, err
}

func set(value string) string {
	return `{"op":"add","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth","value":"` + value + `"}`
}

// Somebody's mutating webhook raises the limit after ours: we are asked again and cap again.
func TestReinvocation(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	lateWebhook(t, ns, set("2G"), false)
	got, err := createDry(t, ns, pod("p", egress, "10M"))
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "50M", requested, "2G", source, "capped")
}

// Where the last word is not ours it is refused: by a policy what CEL can say, by the validating webhook the rest.
func TestFinalObjectIsChecked(t *testing.T) {
	c := needCluster(t)
	const remove = `{"op":"remove","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth"}`
	tests := []struct {
		name, patch string
		labels      []string
		words       []string
	}{
		{
			"raised", set("2G"), []string{bandwidth.LabelMax, "50M"},
			[]string{"'kubepace-max'", fieldName, "2G is above it", `write at most "50M"`},
		},
		{
			"respelt", set("10000k"), []string{bandwidth.LabelMax, "50M"},
			[]string{`"pods.validate.kubepace.io"`, fieldName, "canonical", `write "10M"`},
		},
		{
			"removed", remove, []string{bandwidth.LabelMax, "50M"},
			[]string{"'kubepace-max'", fieldName, "the pod has no limit", `"50M"`},
		},
		{
			"raised above the cluster's maximum", set("2T"), nil,
			[]string{`"pods.validate.kubepace.io"`, fieldName, "--cluster-max"},
		},
		{
			"default removed", remove, []string{bandwidth.LabelDefault, "25M"},
			[]string{`"pods.validate.kubepace.io"`, fieldName, "Required value", `"25M"`},
		},
		{
			"not a rate", set("10 megabits"), nil,
			[]string{"kubepace.io", fieldName, `"10 megabits"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := c.namespace(t, tt.labels...)
			lateWebhook(t, ns, tt.patch, true)
			_, err := createDry(t, ns, pod("p", egress, "10M"))
			requireRefused(t, err, tt.words...)
		})
	}
}

// Without the mutating half (its configuration is gone) nothing gets past what comes after it where a maximum is set.
func TestMutationBypassed(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	config := &admissionv1.MutatingWebhookConfiguration{}
	config.Name = "kubepace-webhook"
	if err := c.Client.Get(t.Context(), clientKey(config.Name), config); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	// Not a Cleanup: the test's context must still live.
	defer func() {
		config.ResourceVersion, config.UID = "", ""
		for i := range config.Webhooks {
			config.Webhooks[i].ClientConfig.CABundle = nil // whoever applies the manifest again brings none
		}
		if err := c.Client.Create(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitInjected(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the mutating half", func() bool {
			got, _, err := create(t, ns, pod("back", egress, "1G"))
			return err == nil && got.Annotations[egress] == "50M" || apierrors.IsAlreadyExists(err)
		})
	}()
	tests := []struct {
		name  string
		pod   *corev1.Pod
		words []string
	}{
		{"too much", pod("p", egress, "1G"), []string{"'kubepace-max'", fieldName, "is above"}},
		{"not canonical", pod("p", egress, "10000k"), []string{`"pods.validate.kubepace.io"`, fieldName, "canonical"}},
		{"without a limit", pod("p"), []string{"'kubepace-max'", fieldName, "the pod has no limit", `"50M"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			eventually(t, "the mutating half to be gone", func() bool {
				_, err = shared.as(t, "").CoreV1().Pods(ns).Create(t.Context(), tt.pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				return err != nil
			})
			requireRefused(t, err, tt.words...)
		})
	}
	got, _, err := create(t, ns, pod("fine", egress, "10M"))
	if err != nil {
		t.Fatal(err)
	}
	requireLimits(t, got, egress, "10M")
}
