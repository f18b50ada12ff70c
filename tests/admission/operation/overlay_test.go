// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// TestCertManagerOverlay: the API server accepts what the overlay renders, the webhook is told of the mounted certificate,
// and has no more right to issue or inject one.
func TestCertManagerOverlay(t *testing.T) {
	s := needService(t)
	objects, err := s.Manifests("manifests/overlays/cert-manager")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, o := range objects {
		kinds[o.GetKind()]++
		raw, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		switch o.GetKind() + " " + o.GetName() {
		case "Deployment kubepace-webhook":
			requireWords(t, text, `"--cert-dir=/tls"`, `"mountPath":"/tls"`, `"readOnly":true`, `"secretName":"kubepace-webhook-cert"`)
		case "Role kubepace-webhook":
			refuseWords(t, text, "secrets")
		case "ClusterRole kubepace-webhook":
			requireWords(t, text, "mutatingwebhookconfigurations")
			for _, rule := range rules(t, o) {
				if strings.Contains(rule, "webhookconfigurations") {
					refuseWords(t, rule, "patch", "update")
				}
			}
		case "MutatingWebhookConfiguration kubepace-webhook", "ValidatingWebhookConfiguration kubepace-webhook":
			requireWords(t, text, `"cert-manager.io/inject-ca-from":"kubepace-system/kubepace-webhook"`)
		}
		if strings.HasPrefix(o.GetAPIVersion(), "cert-manager.io/") {
			continue // its kinds are not there
		}
		if strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
			o.SetName("overlay") // the lab's own calls a URL, and an apply would merge both
		}
		applyDry(t, s, o)
	}
	if kinds["Issuer"] != 2 || kinds["Certificate"] != 2 || kinds["ValidatingWebhookConfiguration"] != 1 {
		t.Errorf("kinds %v", kinds)
	}
}

// applyDry has the API server judge an object without keeping it.
func applyDry(t *testing.T, s *service, o *unstructured.Unstructured) {
	t.Helper()
	err := s.Client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.DryRunAll, client.ForceOwnership, client.FieldOwner("overlay"))
	if err != nil {
		t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
}

// TestDashboardManifest: one ConfigMap that Grafana's sidecar finds, with the dashboard in it.
func TestDashboardManifest(t *testing.T) {
	s := needService(t)
	objects, err := s.Manifests("manifests/dashboard")
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 || objects[0].GetKind() != "ConfigMap" || objects[0].GetLabels()["grafana_dashboard"] != "1" {
		t.Fatalf("%d objects, the first is %s %s with labels %v", len(objects), objects[0].GetKind(), objects[0].GetName(), objects[0].GetLabels())
	}
	text, _, err := unstructured.NestedString(objects[0].Object, "data", "kubepace.json")
	if err != nil || !json.Valid([]byte(text)) {
		t.Errorf("no dashboard in it: %v", err)
	}
	applyDry(t, s, objects[0])
}

// rules are a role's, as JSON.
func rules(t *testing.T, o *unstructured.Unstructured) []string {
	t.Helper()
	list, found, err := unstructured.NestedSlice(o.Object, "rules")
	if err != nil || !found {
		t.Fatalf("rules of %s: %v", o.GetName(), err)
	}
	var out []string
	for _, rule := range list {
		raw, err := json.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(raw))
	}
	return out
}

func requireWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("no %s in %s", w, text)
		}
	}
}

func refuseWords(t *testing.T, text string, words ...string) {
	t.Helper()
	if i := slices.IndexFunc(words, func(w string) bool { return strings.Contains(text, w) }); i >= 0 {
		t.Errorf("%s in %s", words[i], text)
	}
}

// TestCertificateFromFiles: what is mounted is served, and what replaces it, by the same process; TLS 1.3 only.
func TestCertificateFromFiles(t *testing.T) {
	s := needService(t)
	dir := t.TempDir()
	first := writeCertificate(t, dir)
	r := s.withFiles(t, "files", dir)
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := served(r, first, tls.VersionTLS13); err != nil || !got {
		t.Errorf("the mounted certificate is not served: %v", err)
	}
	if _, err := served(r, first, tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	pid := r.PID()
	second := writeCertificate(t, dir)
	eventually(t, "the new certificate", func() bool {
		got, err := served(r, second, tls.VersionTLS13)
		return err == nil && got
	})
	if r.PID() != pid || !r.Running() {
		t.Error("the process was replaced")
	}
}

// withFiles starts a replica, not among those of the Service, that serves the certificate of a folder.
func (s *service) withFiles(t *testing.T, name, dir string) *lab.Replica {
	t.Helper()
	r, err := s.NewReplica(name, "--cert-dir="+dir, "--drain-delay=0s")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// writeCertificate replaces the files as a mounted Secret does: the new ones are there at once.
func writeCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	return writeCertificateFor(t, dir, 365*24*time.Hour)
}

// writeCertificateFor writes one that is valid for so long since an hour ago.
func writeCertificateFor(t *testing.T, dir string, validity time.Duration) *x509.Certificate {
	t.Helper()
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{
		Host: "localhost", AlternateIPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4zero}, MaxAge: validity,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM} {
		fresh := filepath.Join(dir, "."+name)
		if err := os.WriteFile(fresh, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := cert.ParseCertsPEM(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return parsed[0]
}

// served reports whether a replica shows this certificate.
func served(r *lab.Replica, want *x509.Certificate, version uint16) (bool, error) {
	conn, err := tls.Dial("tcp", r.Address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, MaxVersion: version})
	if err != nil {
		return false, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Equal(want), nil
}
