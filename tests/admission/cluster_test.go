// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

const (
	systemNamespace = "kubepace-system"
	serviceAccount  = "system:serviceaccount:" + systemNamespace + ":kubepace-webhook"
	patience        = 60 * time.Second
)

// cluster is what all tests of the package share.
type cluster struct {
	env     *envtest.Environment
	config  *rest.Config
	client  client.Client
	kubectl string
	admin   string // kubeconfig
	audit   string // audit log
	webhook *process
}

var (
	shared = &cluster{}
	tests  lab.Tests
)

func TestMain(m *testing.M) { os.Exit(tests.Run(m, lab.Lacking(), shared.start, shared.stop)) }

// needCluster skips, or fails in CI, where there is no cluster.
func needCluster(t *testing.T) *cluster {
	t.Helper()
	tests.Need(t)
	return shared
}

func (c *cluster) start(dir string) (err error) {
	c.env = &envtest.Environment{ControlPlaneStartTimeout: patience, ControlPlaneStopTimeout: patience}
	c.kubectl = filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl")
	c.audit = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "audit.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	c.env.ControlPlane.GetAPIServer().Configure().
		Append("audit-policy-file", policy).Append("audit-log-path", c.audit)
	if c.config, err = c.env.Start(); err != nil {
		return err
	}
	c.config.QPS = -1
	if c.client, err = client.New(c.config, client.Options{}); err != nil {
		return err
	}
	c.admin = filepath.Join(dir, "admin.kubeconfig")
	if err := os.WriteFile(c.admin, c.env.KubeConfig, 0o600); err != nil {
		return err
	}
	if c.webhook, err = c.newProcess(dir); err != nil {
		return err
	}
	// The webhook first: it must get over finding neither its namespace nor its configurations.
	if err := c.webhook.start(); err != nil {
		return err
	}
	if err := c.install(); err != nil {
		return err
	}
	return c.webhook.waitReady()
}

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: Metadata
  omitStages: [RequestReceived]
  resources: [{group: "", resources: [pods]}]
- level: None
`

func (c *cluster) stop() {
	if c.webhook != nil {
		_ = c.webhook.stop()
	}
	if c.env == nil {
		return
	}
	if err := c.env.Stop(); err != nil {
		fmt.Fprintf(os.Stderr, "stop the cluster: %v\n", err)
	}
}

// install applies what `kubectl apply -k manifests/base` applies, with the webhooks pointed at the loopback address.
func (c *cluster) install() error {
	out, err := exec.Command(c.kubectl, "kustomize", "../../manifests/base").Output()
	if err != nil {
		return fmt.Errorf("kubectl kustomize: %w", err)
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read manifests: %w", err)
		}
		if err := lab.Redirect(o, c.webhook.url, nil); err != nil {
			return err
		}
		err := c.client.Create(context.Background(), o, &client.CreateOptions{Raw: &metav1.CreateOptions{FieldValidation: "Strict"}})
		if err != nil {
			return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
}

// newProcess builds the binary and gives it the identity of the manifests' ServiceAccount.
func (c *cluster) newProcess(dir string) (*process, error) {
	binary, err := lab.Webhook(dir)
	if err != nil {
		return nil, err
	}
	user, err := c.env.AddUser(envtest.User{
		Name: serviceAccount, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + systemNamespace},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("add user: %w", err)
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		return nil, fmt.Errorf("make kubeconfig: %w", err)
	}
	path := filepath.Join(dir, "webhook.kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return nil, err
	}
	return newProcess(binary, path, filepath.Join(dir, "webhook.log"), c.injected)
}

// injected reports whether every webhook of the configurations has a caBundle.
func (c *cluster) injected() bool {
	m, v := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
	key := client.ObjectKey{Name: "kubepace-webhook"}
	if c.client.Get(context.Background(), key, m) != nil || c.client.Get(context.Background(), key, v) != nil {
		return false
	}
	for _, w := range m.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			return false
		}
	}
	for _, w := range v.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			return false
		}
	}
	return true
}

// recorder is a client that keeps the warnings which kubectl would print.
type recorder struct {
	*kubernetes.Clientset
	warnings []string
}

func (r *recorder) HandleWarningHeaderWithContext(_ context.Context, code int, _, text string) {
	if code == 299 {
		r.warnings = append(r.warnings, text)
	}
}

// as returns a client of its own for one user action; the name is empty for the administrator.
func (c *cluster) as(t *testing.T, user string) *recorder {
	t.Helper()
	r := &recorder{}
	config := rest.CopyConfig(c.config)
	config.WarningHandlerWithContext = r
	config.Impersonate.UserName = user
	var err error
	if r.Clientset, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return r
}

// namespace creates one of these labels with a name of its own.
func (c *cluster) namespace(t *testing.T, labels ...string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-", Labels: pairs(labels)}}
	if err := c.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func pairs(words []string) map[string]string {
	out := map[string]string{}
	for i := 0; i+1 < len(words); i += 2 {
		out[words[i]] = words[i+1]
	}
	return out
}

// pod makes one that the API server accepts, with these annotations.
func pod(name string, annotations ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if len(annotations) > 0 {
		p.Annotations = pairs(annotations)
	}
	return p
}

// generated is metadata with a name that the API server makes up, and these annotations.
func generated(annotations ...string) metav1.ObjectMeta {
	return metav1.ObjectMeta{GenerateName: "p-", Annotations: pairs(annotations)}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting after %s for %s", patience, what)
		}
	}
}

func get(url string) (int, string) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}
