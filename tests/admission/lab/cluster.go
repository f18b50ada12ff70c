// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Names in the manifests.
const (
	SystemNamespace = "kubepace-system"
	Configuration   = "kubepace-webhook" // of both webhook configurations
	ServiceAccount  = "system:serviceaccount:" + SystemNamespace + ":kubepace-webhook"
)

// patience bounds every wait for something that is bound to happen.
const patience = 60 * time.Second

// Cluster is a running control plane without nodes.
type Cluster struct {
	Config *rest.Config // of an administrator, without client-side limits
	Client client.Client
	// Kubectl is its path.
	Kubectl string

	env    *envtest.Environment
	dir    string // for keys and logs
	binary string // kubepace-webhook
	user   string // kubeconfig of the ServiceAccount
}

// Lacking says what a cluster needs and this machine does not offer; empty for nothing. KUBEBUILDER_ASSETS names the
// folder of binaries.
func Lacking() string {
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		return "KUBEBUILDER_ASSETS is not set: see tests/kube/build.sh"
	}
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl"} {
		if _, err := exec.LookPath(filepath.Join(assets, name)); err != nil {
			return err.Error()
		}
	}
	return ""
}

// Start starts etcd and kube-apiserver, with these extra flags (name, value, ...), and builds the webhook. The folder
// takes keys and logs. What it returns has to be stopped even with an error.
func Start(dir string, flags ...string) (*Cluster, error) {
	c := &Cluster{
		env:     &envtest.Environment{ControlPlaneStartTimeout: patience, ControlPlaneStopTimeout: patience},
		dir:     dir,
		Kubectl: filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"),
		user:    filepath.Join(dir, "webhook.kubeconfig"),
	}
	arguments := c.env.ControlPlane.GetAPIServer().Configure()
	for i := 0; i+1 < len(flags); i += 2 {
		arguments.Append(flags[i], flags[i+1])
	}
	var err error
	if c.Config, err = c.env.Start(); err != nil {
		return c, fmt.Errorf("start the control plane: %w", err)
	}
	c.Config.QPS = -1
	if c.Client, err = client.New(c.Config, client.Options{}); err != nil {
		return c, fmt.Errorf("make client: %w", err)
	}
	if c.binary, err = Webhook(dir); err != nil {
		return c, err
	}
	return c, c.writeUser()
}

// Webhook returns the webhook's binary: the one that KUBEPACE_WEBHOOK names, else one that it builds in the folder.
func Webhook(dir string) (string, error) {
	if binary := os.Getenv("KUBEPACE_WEBHOOK"); binary != "" {
		return binary, nil
	}
	binary := filepath.Join(dir, "kubepace-webhook")
	build := exec.Command("go", "build", "-o", binary, "github.com/kubepace/kubepace/cmd/kubepace-webhook")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the webhook: %w\n%s", err, out)
	}
	return binary, nil
}

// writeUser makes the kubeconfig of the ServiceAccount.
func (c *Cluster) writeUser() error {
	user, err := c.env.AddUser(envtest.User{
		Name: ServiceAccount, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + SystemNamespace},
	}, nil)
	if err != nil {
		return fmt.Errorf("add user: %w", err)
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		return fmt.Errorf("make kubeconfig: %w", err)
	}
	return os.WriteFile(c.user, kubeconfig, 0o600)
}

// WriteKubeconfig makes an administrator's for kubectl, and returns its path.
func (c *Cluster) WriteKubeconfig() (string, error) {
	path := filepath.Join(c.dir, "admin.kubeconfig")
	return path, os.WriteFile(path, c.env.KubeConfig, 0o600)
}

// Stop ends the control plane.
func (c *Cluster) Stop() error { return c.env.Stop() }

// Root is the project's folder.
func Root() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubepace/kubepace").Output()
	if err != nil {
		return "", fmt.Errorf("find the project's folder: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Manifests builds a kustomization of the project, such as manifests/base.
func (c *Cluster) Manifests(kustomization string) ([]*unstructured.Unstructured, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	build := exec.Command(c.Kubectl, "kustomize", filepath.Join(root, kustomization))
	build.Stderr = &stderr
	out, err := build.Output()
	if err != nil {
		return nil, fmt.Errorf("kubectl kustomize %s: %w\n%s", kustomization, err, &stderr)
	}
	var objects []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("read manifests of %s: %w", kustomization, err)
		}
		objects = append(objects, o)
	}
}

// Install creates the objects, with every webhook called at the URL. Edit may be nil; it changes a webhook further.
func (c *Cluster) Install(ctx context.Context, objects []*unstructured.Unstructured, url string, edit func(webhook map[string]any)) error {
	for _, o := range objects {
		if err := Redirect(o, url, edit); err != nil {
			return err
		}
		err := c.Client.Create(ctx, o, &client.CreateOptions{Raw: &metav1.CreateOptions{FieldValidation: "Strict"}})
		if err != nil {
			return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// ExtraIPs are the webhook's addresses here, for its certificate.
const ExtraIPs = "127.0.0.1,0.0.0.0"

// AsInCluster is a loopback URL at which the API server calls a webhook as it does in clusters: by HTTP/1.1, with a
// connection for each call under way. It keeps HTTP/2 for loopback's names and addresses. 0.0.0.0 is the machine itself.
func AsInCluster(url string) string {
	const loopback, same = "https://127.0.0.1:", "https://0.0.0.0:"
	if url != "" && !strings.HasPrefix(url, loopback) {
		panic("not at " + loopback + ": " + url)
	}
	return strings.Replace(url, loopback, same, 1)
}

// Redirect has every webhook of a configuration called at the URL instead of by clientConfig.service; Edit as for Install.
// Other objects stay as they are.
func Redirect(o *unstructured.Unstructured, url string, edit func(map[string]any)) error {
	if !strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
		return nil
	}
	hooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	if err != nil {
		return err
	}
	for _, h := range hooks {
		hook := h.(map[string]any)
		config := hook["clientConfig"].(map[string]any)
		path, _, _ := unstructured.NestedString(config, "service", "path")
		delete(config, "service")
		config["url"] = AsInCluster(url) + path
		if edit != nil {
			edit(hook)
		}
	}
	return unstructured.SetNestedSlice(o.Object, hooks, "webhooks")
}

// Bundles are the different caBundles of all our webhooks; an empty one is among them where one has none.
func (c *Cluster) Bundles(ctx context.Context) (map[string]bool, error) {
	m, v := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
	for _, o := range []client.Object{m, v} {
		if err := c.Client.Get(ctx, client.ObjectKey{Name: Configuration}, o); err != nil {
			return nil, err
		}
	}
	out := map[string]bool{}
	for _, w := range m.Webhooks {
		out[string(w.ClientConfig.CABundle)] = true
	}
	for _, w := range v.Webhooks {
		out[string(w.ClientConfig.CABundle)] = true
	}
	return out, nil
}

// WaitInjected waits until the API server can trust all webhooks.
func (c *Cluster) WaitInjected(ctx context.Context) error {
	return Until(ctx, "every webhook to have a caBundle", func() bool {
		bundles, err := c.Bundles(ctx)
		return err == nil && !bundles[""]
	})
}

// Until polls.
func Until(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
