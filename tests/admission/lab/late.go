// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// LateMark is the annotation that a late webhook leaves beside its change.
const LateMark = "late"

// Late is somebody else's mutating webhook for new pods, called after ours.
type Late struct {
	Namespace string
	Patch     string // a JSON patch's operations, without the brackets
	Stubborn  bool   // applies the patch each time that it is called, not once for a pod
}

// Start installs the webhook; stop takes it away.
func (l Late) Start(ctx context.Context, c client.Client) (stop func(), err error) {
	server := httptest.NewUnstartedServer(l)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	none, ifNeeded := admissionv1.SideEffectClassNone, admissionv1.IfNeededReinvocationPolicy
	config := &admissionv1.MutatingWebhookConfiguration{
		// Webhooks are called in the order of their configurations' names.
		ObjectMeta: metav1.ObjectMeta{Name: "zz-" + l.Namespace},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "late.tests.kubepace.dev", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, ReinvocationPolicy: &ifNeeded,
			ClientConfig: admissionv1.WebhookClientConfig{
				URL:      &server.URL,
				CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: l.Namespace}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	if err := c.Create(ctx, config); err != nil {
		server.Close()
		return nil, fmt.Errorf("install the late webhook: %w", err)
	}
	return func() {
		_ = c.Delete(context.WithoutCancel(ctx), config)
		server.Close()
	}, nil
}

// ServeHTTP implements http.Handler.
func (l Late) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	if _, again := p.Annotations[LateMark]; l.Stubborn || !again {
		kind := admissionapi.PatchTypeJSONPatch
		mark := `{"op":"add","path":"/metadata/annotations/` + LateMark + `","value":"1"}`
		review.Response.Patch, review.Response.PatchType = []byte("["+mark+","+l.Patch+"]"), &kind
	}
	_ = json.NewEncoder(w).Encode(review)
}
