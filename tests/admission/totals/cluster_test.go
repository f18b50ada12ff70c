// SPDX-License-Identifier: Apache-2.0

package totals

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
	"github.com/kubepace/kubepace/tests/process"
)

const egress = bandwidth.AnnotationEgress

// service is what all tests of the package share.
type service struct {
	*lab.Cluster
	controllers *process.Process
	replicas    []*lab.Replica
	balancer    *lab.Balancer
}

var (
	shared = &service{}
	tests  lab.Tests
)

func TestMain(m *testing.M) {
	os.Exit(tests.Run(m, cmp.Or(lab.Lacking(), lab.LackingControllers()), shared.start, shared.stop))
}

func needService(t *testing.T) *service {
	t.Helper()
	tests.Need(t)
	return shared
}

// start brings up three replicas whose certificates are replaced every 10 s. The manifests stay as they are shipped:
// failurePolicy Ignore lets a pod past a replica that dies, and what is behind has to hold.
func (s *service) start(dir string) (err error) {
	ctx := context.Background()
	if s.Cluster, err = lab.Start(dir); err != nil {
		return err
	}
	if s.controllers, err = s.StartControllers("resourcequota-controller"); err != nil {
		return err
	}
	for i := range 3 {
		r, err := s.NewReplica(fmt.Sprintf("replica-%d", i), "--ca-validity=15s", "--certificate-validity=15s",
			"--ca-propagation=1s", "--lease-duration=3s", "--drain-delay=1s")
		if err != nil {
			return err
		}
		s.replicas = append(s.replicas, r)
	}
	if s.balancer, err = lab.NewBalancer(s.replicas...); err != nil {
		return err
	}
	objects, err := s.Manifests("manifests/base")
	if err != nil {
		return err
	}
	if err := s.Install(ctx, objects, s.balancer.URL, nil); err != nil {
		return err
	}
	return s.up(ctx)
}

// up starts the replicas that are down and waits until the API server can call all.
func (s *service) up(ctx context.Context) error {
	for _, r := range s.replicas {
		if err := r.StartAgain(); err != nil {
			return err
		}
	}
	for _, r := range s.replicas {
		if err := r.WaitReady(ctx); err != nil {
			return err
		}
	}
	if err := s.WaitInjected(ctx); err != nil {
		return err
	}
	return lab.Until(ctx, "all endpoints", func() bool { return len(s.balancer.Endpoints()) == len(s.replicas) })
}

func (s *service) stop() {
	var errs []error
	for _, r := range s.replicas {
		errs = append(errs, r.Stop())
	}
	if s.balancer != nil {
		s.balancer.Close()
	}
	_ = s.controllers.Stop(10 * time.Second) // how it ends is its business
	if s.Cluster != nil {
		errs = append(errs, s.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "stop the cluster: %v\n", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := lab.Until(t.Context(), what, ok); err != nil {
		t.Fatal(err)
	}
}

// namespace creates one with these labels.
func (s *service) namespace(t *testing.T, labels ...string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-", Labels: pairs(labels)}}
	if err := s.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func pairs(words []string) map[string]string {
	if len(words) == 0 {
		return nil
	}
	out := map[string]string{}
	for i := 0; i+1 < len(words); i += 2 {
		out[words[i]] = words[i+1]
	}
	return out
}

// quota creates one and waits until Kubernetes counts by it, and the policies and replicas know it.
func (s *service) quota(t *testing.T, namespace, hard string) *corev1.ResourceQuota {
	t.Helper()
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "egress"}}
	q.Spec.Hard = corev1.ResourceList{bandwidth.QuotaKey: resource.MustParse(hard)}
	if err := s.Client.Create(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the quota to count", func() bool {
		return s.Client.Get(t.Context(), client.ObjectKeyFromObject(q), q) == nil && len(q.Status.Hard) > 0
	})
	s.waitCounted(t, namespace)
	return q
}

// waitCounted waits until admission counts the namespace's pods.
func (s *service) waitCounted(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, "admission to count", func() bool {
		for range 5 {
			p := pod(namespace, "probe", egress, "1k")
			if s.Client.Create(t.Context(), p, client.DryRunAll) != nil || carried(p) != "1k" {
				return false
			}
		}
		return true
	})
}

// used is what the quota says.
func (s *service) used(t *testing.T, q *corev1.ResourceQuota) string {
	t.Helper()
	if err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(q), q); err != nil {
		t.Fatal(err)
	}
	amount := q.Status.Used[bandwidth.QuotaKey]
	return amount.String()
}

// pod makes one that the API server accepts, with these annotations.
func pod(namespace, name string, annotations ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: pairs(annotations)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

// carrying gives the first container this much of the resource.
func carrying(p *corev1.Pod, amount string) *corev1.Pod {
	list := corev1.ResourceList{bandwidth.Resource: resource.MustParse(amount)}
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list, Limits: list}
	return p
}

// carried is what the first container carries; "0" for nothing.
func carried(p *corev1.Pod) string {
	amount := p.Spec.Containers[0].Resources.Requests[bandwidth.Resource]
	return amount.String()
}

// requireRefused wants a refusal that holds all these words.
func requireRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		t.Errorf("want a refusal, got %v", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in: %v", w, err)
		}
	}
}
