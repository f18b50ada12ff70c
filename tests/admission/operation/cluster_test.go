// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/admission/lab"
)

// service is what all tests of the package share.
type service struct {
	*lab.Cluster
	replicas []*lab.Replica
	balancer *lab.Balancer
}

var (
	shared = &service{}
	tests  lab.Tests
)

func TestMain(m *testing.M) { os.Exit(tests.Run(m, lab.Lacking(), shared.start, shared.stop)) }

func needService(t *testing.T) *service {
	t.Helper()
	tests.Need(t)
	return shared
}

// start brings up three replicas whose CA and certificate live for 15 s, so that both are replaced every 10.
func (s *service) start(dir string) (err error) {
	ctx := context.Background()
	if s.Cluster, err = lab.Start(dir); err != nil {
		return err
	}
	for i := range 3 {
		r, err := s.NewReplica(fmt.Sprintf("replica-%d", i), "--ca-validity=15s", "--certificate-validity=15s",
			"--ca-propagation=1s", "--lease-duration=3s", "--drain-delay=3s", fmt.Sprintf("--restamp-rate=%d", restampRate))
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
	err = s.Install(ctx, objects, s.balancer.URL, func(webhook map[string]any) {
		webhook["failurePolicy"], webhook["timeoutSeconds"] = "Fail", int64(10)
	})
	if err != nil {
		return err
	}
	for _, r := range s.replicas {
		if err := r.Start(); err != nil {
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
	if s.Cluster != nil {
		errs = append(errs, s.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "stop the cluster: %v\n", err)
	}
}

func (s *service) logs() (out string) {
	for _, r := range s.replicas {
		out += "--- " + r.Name + "\n" + r.Log() + "\n"
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := lab.Until(t.Context(), what, ok); err != nil {
		t.Fatalf("%v\n%s", err, shared.logs())
	}
}

// namespace creates one whose pods get a limit from both halves of admission.
func (s *service) namespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "team-", Labels: map[string]string{bandwidth.LabelMax: "50M"},
	}}
	if err := s.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// secret is what the leader keeps; nothing where it is missing.
func (s *service) secret(t *testing.T) map[string][]byte {
	t.Helper()
	secret := &corev1.Secret{}
	err := s.Client.Get(t.Context(), client.ObjectKey{Namespace: lab.SystemNamespace, Name: "kubepace-webhook-tls"}, secret)
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return secret.Data
}
