// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// cluster is what all tests of the package share.
type cluster struct {
	*lab.Cluster
	admin   string // kubeconfig
	audit   string // audit log
	webhook *lab.Replica
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
	c.audit = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "audit.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	if c.Cluster, err = lab.Start(dir, "audit-policy-file", policy, "audit-log-path", c.audit); err != nil {
		return err
	}
	if c.admin, err = c.WriteKubeconfig(); err != nil {
		return err
	}
	if c.webhook, err = c.NewReplica("only", "--cluster-max=10G", "--drain-delay=2s"); err != nil {
		return err
	}
	// The webhook first: it must get over finding neither its namespace nor its configurations.
	if err := c.webhook.Start(); err != nil {
		return err
	}
	objects, err := c.Manifests("manifests/base")
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := c.Install(ctx, objects, c.webhook.URL(), nil); err != nil {
		return err
	}
	return c.ready(ctx)
}

// ready waits for the webhook, and for the caBundle, without which the API server cannot call it.
func (c *cluster) ready(ctx context.Context) error {
	return errors.Join(c.webhook.WaitReady(ctx), c.WaitInjected(ctx))
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
	var errs []error
	if c.webhook != nil {
		errs = append(errs, c.webhook.Stop())
	}
	if c.Cluster != nil {
		errs = append(errs, c.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "stop the cluster: %v\n", err)
	}
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
	config := rest.CopyConfig(c.Config)
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
	if err := c.Client.Create(t.Context(), ns); err != nil {
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
	if err := lab.Until(t.Context(), what, ok); err != nil {
		t.Fatal(err)
	}
}

// scrape is the text of the webhook's /metrics; empty where there is none.
func (c *cluster) scrape(t *testing.T) string {
	t.Helper()
	text, err := c.webhook.Metrics()
	if err != nil {
		t.Logf("read metrics: %v", err)
	}
	return text
}
