// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// movable is a clock that tests set; it may be read while it is set.
type movable struct{ nanos atomic.Int64 }

func (m *movable) set(t time.Time) { m.nanos.Store(t.UnixNano()) }
func (m *movable) now() time.Time  { return time.Unix(0, m.nanos.Load()) }

func configurations() []client.Object {
	hooks := []string{"pods.mutate.kubepace.io", "someone.else.example.com"}
	mutating := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "kubepace"}}
	validating := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "kubepace"}}
	for _, name := range hooks {
		mutating.Webhooks = append(mutating.Webhooks, admissionv1.MutatingWebhook{Name: name})
		validating.Webhooks = append(validating.Webhooks, admissionv1.ValidatingWebhook{Name: name})
	}
	return []client.Object{mutating, validating}
}

func newTestKeeper(t *testing.T, c client.Client, clock *movable) *Keeper {
	t.Helper()
	return NewKeeper(Options{
		Client: c, Log: testr.New(t), Clock: clock.now, Names: names,
		Secret:                client.ObjectKey{Namespace: "kubepace-system", Name: "kubepace-webhook-tls"},
		MutatingConfiguration: "kubepace", ValidatingConfiguration: "kubepace", WebhookSuffix: ".kubepace.io",
		Retry: 10 * time.Millisecond,
	})
}

func mustReconcile(t *testing.T, k *Keeper) {
	t.Helper()
	if err := k.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// bundles returns the caBundle of every webhook by configuration and name.
func bundles(t *testing.T, c client.Client) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	m, v := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
	for _, o := range []client.Object{m, v} {
		if err := c.Get(t.Context(), client.ObjectKey{Name: "kubepace"}, o); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range m.Webhooks {
		out["mutating/"+w.Name] = w.ClientConfig.CABundle
	}
	for _, w := range v.Webhooks {
		out["validating/"+w.Name] = w.ClientConfig.CABundle
	}
	return out
}

func TestReconcile(t *testing.T) {
	var patches atomic.Int32
	c := fake.NewClientBuilder().WithObjects(configurations()...).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			patches.Add(1)
			return c.Patch(ctx, o, p, opts...)
		},
	}).Build()
	clock := &movable{}
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	if k.Ready(nil) == nil {
		t.Error("ready before the first certificate")
	}
	mustReconcile(t, k)
	mustReconcile(t, k)
	if n := patches.Load(); n != 2 {
		t.Errorf("%d patches, want one per configuration", n)
	}
	for name, bundle := range bundles(t, c) {
		ours := name == "mutating/pods.mutate.kubepace.io" || name == "validating/pods.mutate.kubepace.io"
		if ours != (trusted(bundle, k.current(), names.DNS[0], start) == nil) || !ours && bundle != nil {
			t.Errorf("%s: wrong caBundle", name)
		}
	}
	if err := k.Ready(nil); err != nil {
		t.Error(err)
	}
	clock.set(days(100))
	if k.Ready(nil) == nil {
		t.Error("ready with an expired certificate")
	}
	secret := &corev1.Secret{}
	if err := c.Get(t.Context(), k.options.Secret, secret); err != nil || secret.Type != corev1.SecretTypeTLS || len(secret.Data) != 4 {
		t.Errorf("%v: type %s, %d keys", err, secret.Type, len(secret.Data))
	}
}

// A second replica, and the same one after a restart, serve what the first one stored.
func TestReplicasShareTheIdentity(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	clock := &movable{}
	clock.set(start)
	const replicas = 8
	keepers := make([]*Keeper, replicas)
	var wg sync.WaitGroup
	for i := range keepers {
		keepers[i] = newTestKeeper(t, c, clock)
		wg.Go(func() {
			if err := keepers[i].Reconcile(t.Context()); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i, k := range keepers {
		if !bytes.Equal(k.current().Certificate[0], keepers[0].current().Certificate[0]) {
			t.Errorf("replica %d serves its own certificate", i)
		}
	}
}

// After a new CA was made a replica goes on with the old leaf until callers can trust the new one.
func TestRotationInjectsBeforeServing(t *testing.T) {
	var broken atomic.Bool
	c := fake.NewClientBuilder().WithObjects(configurations()...).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if broken.Load() {
				return errors.New("API server away")
			}
			return c.Patch(ctx, o, p, opts...)
		},
	}).Build()
	clock := &movable{}
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	mustReconcile(t, k)
	old := k.current()
	clock.set(days(300))
	broken.Store(true)
	if err := k.Reconcile(t.Context()); err == nil {
		t.Fatal("no error although nothing could be injected")
	}
	if k.current() != old {
		t.Error("serves a certificate that nobody trusts yet")
	}
	broken.Store(false)
	mustReconcile(t, k)
	if k.current() == old {
		t.Error("still serves the old certificate")
	}
	bundle := bundles(t, c)["mutating/pods.mutate.kubepace.io"]
	for name, pair := range map[string]*tls.Certificate{"old": old, "new": k.current()} {
		if err := trusted(bundle, pair, names.DNS[0], pair.Leaf.NotAfter.Add(-time.Hour)); err != nil {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
}

func TestNewNamesAreIssued(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	clock := &movable{}
	clock.set(start)
	mustReconcile(t, newTestKeeper(t, c, clock))
	k := newTestKeeper(t, c, clock)
	k.options.Names.DNS = append([]string{"extra.example"}, names.DNS...)
	mustReconcile(t, k)
	if err := k.current().Leaf.VerifyHostname("extra.example"); err != nil {
		t.Error(err)
	}
}

// The loop keeps trying until the configurations exist, and ends with its context.
func TestStart(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	clock := &movable{}
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Start(ctx) }()
	eventually(t, func() bool { return k.Ready(nil) == nil })
	for _, o := range configurations() {
		if err := c.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return bundles(t, c)["validating/pods.mutate.kubepace.io"] != nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still waiting after 10 s")
		}
	}
}

// A server follows a rotation without a restart, and speaks TLS 1.3 only.
func TestConfigure(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	clock := &movable{}
	clock.set(time.Now().Add(-61 * 24 * time.Hour)) // the handshakes below use the real clock
	k := newTestKeeper(t, c, clock)
	config := &tls.Config{}
	k.Configure(config)
	if _, err := handshake(t, config, nil, tls.VersionTLS13); err == nil {
		t.Error("handshake before the first certificate")
	}
	mustReconcile(t, k)
	bundle := bundles(t, c)["mutating/pods.mutate.kubepace.io"]
	first, err := handshake(t, config, bundle, tls.VersionTLS13)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, config, bundle, tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	clock.set(time.Now())
	mustReconcile(t, k)
	if second, err := handshake(t, config, bundle, tls.VersionTLS13); err != nil || second.Equal(first) {
		t.Errorf("%v, or still the old certificate", err)
	}
}

// handshake returns the certificate that a server of this configuration shows.
func handshake(t *testing.T, server *tls.Config, bundle []byte, version uint16) (*x509.Certificate, error) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if conn, err := listener.Accept(); err == nil {
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	defer func() { <-accepted }()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", listener.Addr().String(),
		&tls.Config{RootCAs: roots, MaxVersion: version})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// A replica that loses the race for the Secret, by create or by update, serves the winner's certificate.
func TestLosingARace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first bool // whether the loser finds no Secret at all
	}{{"create", true}, {"update", false}} {
		t.Run(tt.name, func(t *testing.T) {
			clock := &movable{}
			clock.set(start)
			var winner *Keeper
			var once sync.Once
			win := func() { once.Do(func() { mustReconcile(t, winner) }) }
			plain := fake.NewClientBuilder().WithObjects(configurations()...).Build()
			winner = newTestKeeper(t, plain, clock)
			slow := interceptor.NewClient(plain, interceptor.Funcs{
				Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
					win()
					return c.Create(ctx, o, opts...)
				},
				Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
					win()
					return c.Update(ctx, o, opts...)
				},
			})
			if !tt.first {
				mustReconcile(t, newTestKeeper(t, plain, clock))
				clock.set(days(61))
			}
			loser := newTestKeeper(t, slow, clock)
			mustReconcile(t, loser)
			if winner.current() == nil || !bytes.Equal(loser.current().Certificate[0], winner.current().Certificate[0]) {
				t.Error("the loser serves a certificate of its own")
			}
		})
	}
}
