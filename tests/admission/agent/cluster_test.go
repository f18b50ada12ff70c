// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

const agentAccount = "kubepace-enforcer"

// cluster is what all tests of the package share.
type cluster struct {
	*lab.Cluster
	admin   *kubernetes.Clientset
	webhook *lab.Replica
}

var (
	shared = &cluster{}
	tests  lab.Tests
)

func TestMain(m *testing.M) { os.Exit(tests.Run(m, lab.Lacking(), shared.start, shared.stop)) }

func need(t *testing.T) *cluster {
	t.Helper()
	tests.Need(t)
	return shared
}

// start brings up an API server with our manifests, and one webhook, which leads.
func (c *cluster) start(dir string) (err error) {
	ctx := context.Background()
	if c.Cluster, err = lab.Start(dir); err != nil {
		return err
	}
	if c.admin, err = kubernetes.NewForConfig(c.Config); err != nil {
		return err
	}
	if c.webhook, err = c.NewReplica("replica", "--lease-duration=3s", "--agent-check=1s"); err != nil {
		return err
	}
	objects, err := c.Manifests("manifests/base")
	if err != nil {
		return err
	}
	if err := c.Install(ctx, objects, "https://"+c.webhook.Address, nil); err != nil {
		return err
	}
	if err := c.webhook.Start(); err != nil {
		return err
	}
	if err := errors.Join(c.webhook.WaitReady(ctx), c.WaitInjected(ctx)); err != nil {
		return err
	}
	return c.waitPolicies(ctx)
}

// waitPolicies waits until the API server holds agents to their policies.
func (c *cluster) waitPolicies(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "probe"}}
	if err := c.Client.Create(ctx, node); err != nil {
		return err
	}
	for _, name := range []string{agentAccount, "kubepace-webhook"} {
		clients, err := kubernetes.NewForConfig(c.as("system:serviceaccount:" + lab.SystemNamespace + ":" + name))
		if err != nil {
			return err
		}
		tries := 0 // each with a label of its own: one that is there already would be no change
		err = lab.Until(ctx, "the policy on nodes to hold "+name, func() bool {
			tries++
			err := patch(ctx, clients, node.Name, fmt.Sprintf(`{"metadata":{"labels":{"%s":"%d"}}}`, name, tries))
			return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "denied request")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func patch(ctx context.Context, clients kubernetes.Interface, node, data string) error {
	_, err := clients.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(data), metav1.PatchOptions{}, "status")
	return err
}

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

// as impersonates a user, without what a token would say of its node.
func (c *cluster) as(user string) *rest.Config {
	config := rest.CopyConfig(c.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + lab.SystemNamespace, "system:authenticated"}}
	return config
}

// node makes one, and the token of the agent's pod on it.
func (c *cluster) node(t *testing.T, name string) *rest.Config {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	c.create(t, n)
	n.Status.Capacity = corev1.ResourceList{corev1.ResourceCPU: quantity("4")}
	n.Status.Allocatable = n.Status.Capacity
	if err := c.Client.Status().Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	pod := c.pod(lab.SystemNamespace, "agent-"+name, name, "")
	pod.Spec.ServiceAccountName = agentAccount
	c.create(t, pod)
	return c.token(t, &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
}

// token is one of the agent's account.
func (c *cluster) token(t *testing.T, bound *authenticationv1.BoundObjectReference) *rest.Config {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	answer, err := c.admin.CoreV1().ServiceAccounts(lab.SystemNamespace).CreateToken(t.Context(), agentAccount, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.Config)
	config.BearerToken, config.QPS = answer.Status.Token, -1
	return config
}

func (c *cluster) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := c.Client.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// pod is one that is bound to a node.
func (c *cluster) pod(namespace, name, node, limit string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
	if limit != "" {
		pod.Annotations = map[string]string{bandwidth.AnnotationEgress: limit}
	}
	return pod
}

// namespace makes one that admission leaves alone: what comes here is what an agent may meet.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-", Labels: map[string]string{bandwidth.LabelMode: bandwidth.ModeOff}}}
	c.create(t, ns)
	return ns.Name
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := lab.Until(t.Context(), what, ok); err != nil {
		t.Fatalf("%v\n%s", err, shared.webhook.Log())
	}
}

// refused wants a Forbidden that says why.
func refused(t *testing.T, what string, err error, why string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v; want it forbidden: %q", what, err, why)
	}
}
