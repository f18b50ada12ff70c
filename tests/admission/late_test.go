// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

// lateMark is the annotation that the late webhook leaves beside its change.
const lateMark = "late"

// lateWebhook installs a mutating webhook behind ours that applies the patch and leaves its mark: once per
// pod, or each time that it is called.
func lateWebhook(t *testing.T, namespace, patch string, stubborn bool) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionapi.AdmissionReview
		var p corev1.Pod
		err := json.NewDecoder(r.Body).Decode(&review)
		if err == nil {
			err = json.Unmarshal(review.Request.Object.Raw, &p)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionapi.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if _, again := p.Annotations[lateMark]; stubborn || !again {
			kind := admissionapi.PatchTypeJSONPatch
			mark := `{"op":"add","path":"/metadata/annotations/` + lateMark + `","value":"1"}`
			review.Response.Patch, review.Response.PatchType = []byte("["+mark+","+patch+"]"), &kind
		}
		_ = json.NewEncoder(w).Encode(review)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	none, ifNeeded := admissionv1.SideEffectClassNone, admissionv1.IfNeededReinvocationPolicy
	config := &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "zz-" + namespace},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "late.tests.kubepace.dev", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, ReinvocationPolicy: &ifNeeded,
			ClientConfig: admissionv1.WebhookClientConfig{
				URL:      &server.URL,
				CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	if err := shared.client.Create(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.client.Delete(context.Background(), config) })
}

// createDry creates a pod as a dry run, again and again until the late webhook has had its hands on it.
func createDry(t *testing.T, namespace string, p *corev1.Pod) (got *corev1.Pod, err error) {
	t.Helper()
	eventually(t, "the late webhook", func() bool {
		got, err = shared.as(t, "").CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil || got.Annotations[lateMark] != ""
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
			[]string{"'kubepace-limits'", fieldName, "2G is above it", `write at most "50M"`},
		},
		{
			"respelt", set("10000k"), []string{bandwidth.LabelMax, "50M"},
			[]string{`"pods.validate.kubepace.io"`, fieldName, "canonical", `write "10M"`},
		},
		{
			"removed", remove, []string{bandwidth.LabelMax, "50M"},
			[]string{"'kubepace-limits'", fieldName, "the pod has no limit", `"50M"`},
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
	if err := c.client.Get(t.Context(), clientKey(config.Name), config); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Delete(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	// Not a Cleanup: the test's context must still live.
	defer func() {
		config.ResourceVersion, config.UID = "", ""
		for i := range config.Webhooks {
			config.Webhooks[i].ClientConfig.CABundle = nil // whoever applies the manifest again brings none
		}
		if err := c.client.Create(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the caBundle in the new configuration", c.injected)
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
		{"too much", pod("p", egress, "1G"), []string{"'kubepace-limits'", fieldName, "is above"}},
		{"not canonical", pod("p", egress, "10000k"), []string{`"pods.validate.kubepace.io"`, fieldName, "canonical"}},
		{"without a limit", pod("p"), []string{"'kubepace-limits'", fieldName, "the pod has no limit", `"50M"`}},
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
