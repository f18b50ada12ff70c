// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

var testSecret = client.ObjectKey{Namespace: "kubepace-system", Name: "kubepace-webhook-tls"}

func newTestKeeper(t *testing.T, c client.Client, clock *movable) *Keeper {
	t.Helper()
	return NewKeeper(Options{
		Client: c, Log: testr.New(t), Clock: clock.now, Names: names, Secret: testSecret,
		MutatingConfiguration: "kubepace", ValidatingConfiguration: "kubepace", WebhookSuffix: ".kubepace.io",
		Retry: 10 * time.Millisecond, Propagation: 10 * time.Second,
	})
}

func newTestServer(t *testing.T, c client.Client, clock *movable, replica string) *Server {
	t.Helper()
	return NewServer(ServerOptions{
		Client: c, Log: testr.New(t), Clock: clock.now, Secret: testSecret, Replica: replica, Retry: 10 * time.Millisecond,
	})
}

func mustReconcile(t *testing.T, k *Keeper) (again time.Duration) {
	t.Helper()
	again, err := k.Reconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func mustServe(t *testing.T, s *Server) *tls.Certificate {
	t.Helper()
	if err := s.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s.serving.Load()
}

// stored is what the Secret holds.
func stored(t *testing.T, k *Keeper) Identity {
	t.Helper()
	_, id, err := k.store.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func trustedCAs(t *testing.T, c client.Client) int {
	t.Helper()
	return len(certificates(bundles(t, c)["mutating/pods.mutate.kubepace.io"]))
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
	mustReconcile(t, k) // nobody trusts anything yet: nothing is waited for
	if again := mustReconcile(t, k); again != k.options.Resync {
		t.Errorf("looks again in %s", again)
	}
	clock.set(days(60).Add(-time.Second))
	if again := mustReconcile(t, k); again > 2*time.Second || again <= time.Second {
		t.Errorf("looks again in %s a second before the certificate is to be replaced", again)
	}
	clock.set(start)
	if n := patches.Load(); n != 2 {
		t.Errorf("%d patches, want one per configuration", n)
	}
	pair := mustPair(t, stored(t, k))
	for name, bundle := range bundles(t, c) {
		ours := name == "mutating/pods.mutate.kubepace.io" || name == "validating/pods.mutate.kubepace.io"
		if ours != (trusted(bundle, pair, names.DNS[0], start) == nil) || !ours && bundle != nil {
			t.Errorf("%s: wrong caBundle", name)
		}
	}
	secret := &corev1.Secret{}
	if err := c.Get(t.Context(), k.options.Secret, secret); err != nil || secret.Type != corev1.SecretTypeTLS || len(secret.Data) != 4 {
		t.Errorf("%v: type %s, %d keys", err, secret.Type, len(secret.Data))
	}
}

// Every replica serves what the leader stored, is ready while that is valid, and keeps it when the Secret turns bad.
func TestServer(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	clock := &movable{}
	clock.set(start)
	s := newTestServer(t, c, clock, "one")
	if err := s.Reconcile(t.Context()); !errors.Is(err, errNotReady) || s.Ready(nil) == nil {
		t.Errorf("without a Secret: %v", err)
	}
	k := newTestKeeper(t, c, clock)
	mustReconcile(t, k)
	pair := mustServe(t, s)
	if !bytes.Equal(pair.Certificate[0], mustPair(t, stored(t, k)).Certificate[0]) || s.Ready(nil) != nil {
		t.Error("serves something else, or is not ready")
	}
	secret := &corev1.Secret{}
	if err := c.Get(t.Context(), testSecret, secret); err != nil {
		t.Fatal(err)
	}
	secret.Data[corev1.TLSCertKey] = []byte("rubbish")
	if err := c.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := s.Reconcile(t.Context()); !errors.Is(err, errUnusable) || s.serving.Load() != pair || s.Ready(nil) != nil {
		t.Errorf("with rubbish in the Secret: %v", err)
	}
	clock.set(days(100))
	if s.Ready(nil) == nil {
		t.Error("ready with an expired certificate")
	}
}

// The whole way to a new CA: trusted before it is served, and the old one until nobody serves by it.
func TestRotation(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	clock := &movable{}
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	mustReconcile(t, k)
	quick, slow := newTestServer(t, c, clock, "quick"), newTestServer(t, c, clock, "slow")
	old := mustServe(t, quick)
	mustServe(t, slow)

	now := days(80) // the leaf expires on day 90, the CA needs company from day 243 on
	clock.set(now)
	mustReconcile(t, k)
	if renewed := mustServe(t, quick); renewed == old || trustedCAs(t, c) != 1 {
		t.Fatalf("the leaf was not renewed, or %d CAs are trusted", trustedCAs(t, c))
	}
	for _, d := range []int{150, 220} {
		clock.set(days(d))
		mustReconcile(t, k)
	}
	old = mustServe(t, quick)
	mustServe(t, slow)

	now = days(250)
	clock.set(now)
	if again := mustReconcile(t, k); again != k.options.Propagation || trustedCAs(t, c) != 2 || mustServe(t, quick) != old {
		t.Fatalf("staged: again in %s, %d CAs", again, trustedCAs(t, c))
	}
	mustServe(t, slow)
	clock.set(now.Add(9 * time.Second))
	if again := mustReconcile(t, k); again != time.Second || mustServe(t, quick) != old {
		t.Fatalf("promoted after 9 s, or again in %s", again)
	}
	clock.set(now.Add(10 * time.Second))
	mustReconcile(t, k)
	fresh := mustServe(t, quick)
	if fresh == old {
		t.Fatal("not promoted")
	}
	for range 2 { // the slow one has not got there
		if again := mustReconcile(t, k); again != k.options.Retry || trustedCAs(t, c) != 2 {
			t.Fatalf("again in %s, %d CAs", again, trustedCAs(t, c))
		}
	}
	bundle := bundles(t, c)["mutating/pods.mutate.kubepace.io"]
	for name, pair := range map[string]*tls.Certificate{"old": old, "new": fresh} {
		if err := trusted(bundle, pair, names.DNS[0], clock.now()); err != nil {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
	mustServe(t, slow)
	mustReconcile(t, k)
	mustReconcile(t, k)
	if n := trustedCAs(t, c); n != 1 {
		t.Errorf("%d CAs are trusted in the end", n)
	}
	if err := trusted(bundles(t, c)["mutating/pods.mutate.kubepace.io"], fresh, names.DNS[0], clock.now()); err != nil {
		t.Error(err)
	}
}

// promoted makes a keeper that has just begun to use a second CA.
func promoted(t *testing.T, c client.Client, clock *movable, replicas ...*Server) *Keeper {
	t.Helper()
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	mustReconcile(t, k)
	clock.set(days(200))
	mustReconcile(t, k)
	clock.set(days(250))
	for _, s := range replicas {
		mustServe(t, s)
	}
	mustReconcile(t, k)
	clock.set(days(250).Add(time.Minute))
	mustReconcile(t, k)
	return k
}

// A replica that died is not waited for beyond its Lease; where nobody reports, the old CA lives out its time.
func TestLapsedReplicas(t *testing.T) {
	c, clock := fake.NewClientBuilder().WithObjects(configurations()...).Build(), &movable{}
	alive, dead := newTestServer(t, c, clock, "alive"), newTestServer(t, c, clock, "dead")
	k := promoted(t, c, clock, alive, dead)
	for range 5 {
		mustServe(t, alive)
		mustReconcile(t, k)
		if n := trustedCAs(t, c); n != 2 {
			t.Fatalf("%d CAs %s after the promotion", n, clock.now().Sub(days(250)))
		}
		clock.set(clock.now().Add(14 * time.Second))
	}
	mustServe(t, alive)
	mustReconcile(t, k) // more than a minute: gone
	mustReconcile(t, k)
	if n := trustedCAs(t, c); n != 1 {
		t.Errorf("%d CAs although the dead replica's lease lapsed", n)
	}
	leases := &coordinationv1.LeaseList{}
	if err := c.List(t.Context(), leases); err != nil || len(leases.Items) != 1 {
		t.Errorf("%v: %d leases are left, want the living one's", err, len(leases.Items))
	}

	c = fake.NewClientBuilder().WithObjects(configurations()...).Build()
	k = promoted(t, c, clock)
	mustReconcile(t, k)
	if n := trustedCAs(t, c); n != 2 {
		t.Errorf("%d CAs although nobody said what he serves", n)
	}
	clock.set(days(366))
	mustReconcile(t, k)
	mustReconcile(t, k)
	if n := trustedCAs(t, c); n != 1 {
		t.Errorf("%d CAs although the old one has expired", n)
	}
}

// A replica is known to the leader before it looks at the Secret, and no more when it ends.
func TestPresence(t *testing.T) {
	clock := &movable{}
	clock.set(start)
	var leases []string
	plain := fake.NewClientBuilder().WithObjects(configurations()...).Build()
	mustReconcile(t, newTestKeeper(t, plain, clock))
	c := interceptor.NewClient(plain, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if list := (&coordinationv1.LeaseList{}); c.List(ctx, list) != nil || len(list.Items) != 1 {
				t.Errorf("reads the secret with %d leases", len(list.Items))
			} else {
				leases = append(leases, list.Items[0].Annotations[AnnotationServing])
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
	s := newTestServer(t, c, clock, "one")
	pair := mustServe(t, s)
	mustServe(t, s)
	if len(leases) != 2 || leases[0] != "" || leases[1] != serial(pair.Leaf) {
		t.Errorf("leases said %q before the rounds", leases)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if list := (&coordinationv1.LeaseList{}); plain.List(t.Context(), list) != nil || len(list.Items) != 0 {
		t.Error("the lease outlives the replica")
	}
}

// While a new CA cannot be injected it is not used.
func TestNoPromotionWithoutInjection(t *testing.T) {
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
	clock.set(days(200))
	mustReconcile(t, k)
	before := stored(t, k).Cert
	broken.Store(true)
	clock.set(days(250))
	for range 3 {
		if _, err := k.Reconcile(t.Context()); err == nil {
			t.Fatal("no error although nothing could be injected")
		}
		clock.set(clock.now().Add(time.Minute))
	}
	broken.Store(false)
	if mustReconcile(t, k); !bytes.Equal(stored(t, k).Cert, before) {
		t.Error("used before it had time to be known")
	}
	clock.set(clock.now().Add(time.Minute))
	if mustReconcile(t, k); bytes.Equal(stored(t, k).Cert, before) {
		t.Error("never used")
	}
}

// Replicas still serve what the deleted Secret held: it stays trusted until they have the new certificate.
func TestDeletedSecret(t *testing.T) {
	c, clock := fake.NewClientBuilder().WithObjects(configurations()...).Build(), &movable{}
	clock.set(start)
	k := newTestKeeper(t, c, clock)
	s := newTestServer(t, c, clock, "one")
	mustReconcile(t, k)
	old := mustServe(t, s)
	secret := &corev1.Secret{}
	secret.Name, secret.Namespace = testSecret.Name, testSecret.Namespace
	if err := c.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	step := func() error {
		mustReconcile(t, k)
		_ = s.Reconcile(t.Context()) // may find no certificate
		clock.set(clock.now().Add(k.options.Propagation))
		return trusted(bundles(t, c)["mutating/pods.mutate.kubepace.io"], s.serving.Load(), names.DNS[0], clock.now())
	}
	for i := range 6 {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if s.serving.Load() == old || trustedCAs(t, c) != 1 {
		t.Errorf("not replaced, or %d CAs", trustedCAs(t, c))
	}
}

// Of two leaders the one that read an older version writes nothing.
func TestTwoLeaders(t *testing.T) {
	for _, first := range []bool{true, false} {
		clock := &movable{}
		clock.set(start)
		plain := fake.NewClientBuilder().WithObjects(configurations()...).Build()
		winner := newTestKeeper(t, plain, clock)
		if !first {
			mustReconcile(t, winner)
			clock.set(days(61))
		}
		var once sync.Once
		win := func() { once.Do(func() { mustReconcile(t, winner) }) }
		loser := newTestKeeper(t, interceptor.NewClient(plain, interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				win()
				return c.Create(ctx, o, opts...)
			},
			Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
				win()
				return c.Update(ctx, o, opts...)
			},
		}), clock)
		if _, err := loser.Reconcile(t.Context()); !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			t.Errorf("the loser: %v", err)
		}
		won := stored(t, winner)
		mustReconcile(t, loser)
		if !bytes.Equal(stored(t, winner).Cert, won.Cert) {
			t.Error("the loser replaced the winner's certificate")
		}
	}
}

func TestNewNamesAreIssued(t *testing.T) {
	c, clock := fake.NewClientBuilder().WithObjects(configurations()...).Build(), &movable{}
	clock.set(start)
	mustReconcile(t, newTestKeeper(t, c, clock))
	k := newTestKeeper(t, c, clock)
	k.options.Names.DNS = append([]string{"extra.example"}, names.DNS...)
	mustReconcile(t, k)
	if err := mustPair(t, stored(t, k)).Leaf.VerifyHostname("extra.example"); err != nil {
		t.Error(err)
	}
}

// The loops keep trying until the configurations exist, and end with their context.
func TestStart(t *testing.T) {
	c, clock := fake.NewClientBuilder().Build(), &movable{}
	clock.set(start)
	k, s := newTestKeeper(t, c, clock), newTestServer(t, c, clock, "one")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Start(ctx) }()
	go func() { done <- k.Start(ctx) }()
	eventually(t, func() bool { return s.Ready(nil) == nil })
	for _, o := range configurations() {
		if err := c.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return bundles(t, c)["validating/pods.mutate.kubepace.io"] != nil })
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
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
	c, clock := fake.NewClientBuilder().WithObjects(configurations()...).Build(), &movable{}
	clock.set(time.Now().Add(-61 * 24 * time.Hour)) // the handshakes below use the real clock
	k, s := newTestKeeper(t, c, clock), newTestServer(t, c, clock, "one")
	config := &tls.Config{}
	s.Configure(config)
	if _, err := handshake(t, config, nil, tls.VersionTLS13); err == nil {
		t.Error("handshake before the first certificate")
	}
	mustReconcile(t, k)
	mustServe(t, s)
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
	mustServe(t, s)
	if second, err := handshake(t, config, bundle, tls.VersionTLS13); err != nil || second.Equal(first) {
		t.Errorf("%v, or still the old certificate", err)
	}
}

// Certificates that somebody else keeps in files are followed too.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(id Identity) {
		for name, content := range map[string][]byte{corev1.TLSPrivateKeyKey: id.Key, corev1.TLSCertKey: id.Cert} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := NewFiles(dir, nil); err == nil {
		t.Error("no files are fine")
	}
	first, second := mustIssue(t, time.Now(), names), mustIssue(t, time.Now(), names)
	write(first)
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFiles(dir, metrics)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Start(ctx) }()
	config := &tls.Config{}
	f.Configure(config)
	if _, err := handshake(t, config, first.CACerts, tls.VersionTLS13); err != nil || f.Ready(nil) != nil {
		t.Errorf("%v, %v", err, f.Ready(nil))
	}
	if _, err := handshake(t, config, first.CACerts, tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	write(second)
	eventually(t, func() bool { _, err := handshake(t, config, second.CACerts, tls.VersionTLS13); return err == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, func() bool {
		families, err := registry.Gather()
		return err == nil && families[0].GetMetric()[0].GetCounter().GetValue() == 2
	})
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
