// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

func clientKey(name string) client.ObjectKey { return client.ObjectKey{Name: name} }

func secretData(t *testing.T) map[string][]byte {
	t.Helper()
	secret := &corev1.Secret{}
	if err := shared.Client.Get(t.Context(), client.ObjectKey{Namespace: lab.SystemNamespace, Name: "kubepace-webhook-tls"}, secret); err != nil {
		t.Fatal(err)
	}
	return secret.Data
}

// The caBundle verifies what is served, by TLS 1.3 only, and comes back when somebody overwrites it.
func TestCertificates(t *testing.T) {
	c := needCluster(t)
	config := &admissionv1.ValidatingWebhookConfiguration{}
	read := func() []byte {
		if err := c.Client.Get(t.Context(), clientKey("kubepace-webhook"), config); err != nil {
			t.Fatal(err)
		}
		return config.Webhooks[0].ClientConfig.CABundle
	}
	bundle := read()
	if diff := cmp.Diff(secretData(t)["ca.crt"], bundle); diff != "" {
		t.Errorf("the caBundle is not the Secret's: %s", diff)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	address := c.webhook.Address
	for _, name := range []string{"127.0.0.1", "kubepace-webhook.kubepace-system.svc"} {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
	if conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 is accepted")
	}
	patch, err := json.Marshal([]map[string]any{{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Patch(t.Context(), config, client.RawPatch(types.JSONPatchType, patch)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the caBundle", func() bool { return cmp.Equal(read(), bundle) })
}

// The webhook's ServiceAccount may do what it needs and no more.
func TestLeastPrivilege(t *testing.T) {
	needCluster(t)
	r := shared.as(t, lab.ServiceAccount)
	secrets := r.CoreV1().Secrets(lab.SystemNamespace)
	for name, err := range map[string]error{
		"list secrets":          func() error { _, err := secrets.List(t.Context(), metav1.ListOptions{}); return err }(),
		"read another secret":   func() error { _, err := secrets.Get(t.Context(), "x", metav1.GetOptions{}); return err }(),
		"delete its secret":     secrets.Delete(t.Context(), "kubepace-webhook-tls", metav1.DeleteOptions{}),
		"delete pods":           r.CoreV1().Pods("default").Delete(t.Context(), "x", metav1.DeleteOptions{}),
		"delete its own config": r.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), "kubepace-webhook", metav1.DeleteOptions{}),
	} {
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func namespaced(namespace string, p *corev1.Pod) *corev1.Pod {
	p.Namespace = namespace
	return p
}

func TestMetrics(t *testing.T) {
	c := needCluster(t)
	ns := c.namespace(t, bandwidth.LabelMax, "50M")
	mustCreate(t, ns, pod("p", egress, "1G"))
	// A client's dry run leaves no pod behind, and does not count.
	if err := client.NewDryRunClient(c.Client).Create(t.Context(), namespaced(ns, pod("dry", egress, "1G"))); err != nil {
		t.Fatal(err)
	}
	body := c.scrape(t)
	for _, want := range []string{
		`kubepace_admission_decisions_total{half="mutate",mode="enforce",reason="capped"}`,
		`kubepace_admission_decisions_total{half="validate",mode="enforce",reason="capped"}`,
		`controller_runtime_webhook_latency_seconds_bucket{webhook="/mutate/pods"`,
		`kubepace_admission_capped_bits_per_second_total{namespace="` + ns + `"} 9.5e+08`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}
