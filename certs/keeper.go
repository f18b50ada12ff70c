// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Clock tells the time; tests replace it.
type Clock func() time.Time

// Options configure a Keeper.
type Options struct {
	// Client must read from the API server itself, not from a cache.
	Client client.Client
	// Informers tell of changes to the Secret and the configurations; nil leaves it to Resync alone. They should be
	// narrowed to those objects.
	Informers cache.Informers
	Log       logr.Logger

	// Secret holds the identity that all replicas share.
	Secret client.ObjectKey
	// Names that the serving certificate must hold.
	Names Names
	// MutatingConfiguration and ValidatingConfiguration name what gets the caBundle; empty names are left out.
	MutatingConfiguration   string
	ValidatingConfiguration string
	// WebhookSuffix is the end of our webhooks' names; other webhooks of the configurations are left alone.
	WebhookSuffix string

	// Validity of new certificates; zero means DefaultValidity.
	Validity Validity
	// Resync is how often everything is compared without an event; zero means a minute.
	Resync time.Duration
	// Retry is how soon a failed round is repeated; zero means a second.
	Retry time.Duration
	// Clock; nil means time.Now.
	Clock Clock
}

func (o *Options) setDefaults() {
	if o.Validity == (Validity{}) {
		o.Validity = DefaultValidity
	}
	if o.Resync == 0 {
		o.Resync = time.Minute
	}
	if o.Retry == 0 {
		o.Retry = time.Second
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
}

// Keeper keeps the identity valid, injected and served. Every replica runs one.
type Keeper struct {
	options Options
	store   store
	inject  injector
	changed chan struct{} // holds one pending wake-up

	mu      sync.RWMutex
	serving *tls.Certificate
}

var (
	_ manager.Runnable               = (*Keeper)(nil)
	_ manager.LeaderElectionRunnable = (*Keeper)(nil)
)

// NewKeeper returns a Keeper that does nothing until Start.
func NewKeeper(o Options) *Keeper {
	o.setDefaults()
	return &Keeper{
		options: o,
		store:   store{client: o.Client, key: o.Secret},
		inject:  injector{o.Client, o.MutatingConfiguration, o.ValidatingConfiguration, o.WebhookSuffix},
		changed: make(chan struct{}, 1),
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica serves.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable; it returns when the context ends.
func (k *Keeper) Start(ctx context.Context) error {
	if err := k.watch(ctx); err != nil {
		return err
	}
	for {
		next := k.options.Resync
		if err := k.Reconcile(ctx); err != nil && ctx.Err() == nil {
			k.options.Log.Error(err, "certificates are not in order yet", "retryIn", k.options.Retry.String())
			next = k.options.Retry
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-k.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// watch wakes the loop on every event.
func (k *Keeper) watch(ctx context.Context) error {
	if k.options.Informers == nil {
		return nil
	}
	for _, o := range k.Watched() {
		informer, err := k.options.Informers.GetInformer(ctx, o)
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { k.wake() },
			UpdateFunc: func(any, any) { k.wake() },
			DeleteFunc: func(any) { k.wake() },
		})
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
	}
	return nil
}

// Watched lists the kinds that Informers are asked for.
func (k *Keeper) Watched() []client.Object {
	objects := []client.Object{&corev1.Secret{}}
	if k.options.MutatingConfiguration != "" {
		objects = append(objects, &admissionv1.MutatingWebhookConfiguration{})
	}
	if k.options.ValidatingConfiguration != "" {
		objects = append(objects, &admissionv1.ValidatingWebhookConfiguration{})
	}
	return objects
}

func (k *Keeper) wake() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Reconcile does one round: read or renew, inject, serve. The first certificate is served at once, since nobody can be
// served worse; a later one only after its CA is in the configurations, so that callers always trust what they meet.
func (k *Keeper) Reconcile(ctx context.Context) error {
	now := k.options.Clock()
	var pair *tls.Certificate
	id, err := k.store.identity(ctx, func(id Identity) (err error) {
		pair, err = id.Check(now, k.options.Names)
		return err
	}, func(id Identity) (Identity, error) {
		k.options.Log.Info("issuing certificates")
		return id.Renew(now, k.options.Names, k.options.Validity)
	})
	if err != nil {
		return err
	}
	if pair == nil {
		if pair, err = id.Check(now, k.options.Names); err != nil {
			return fmt.Errorf("check issued certificates: %w", err)
		}
	}
	if k.current() == nil {
		k.serve(pair)
	}
	if err := k.inject.inject(ctx, id.CACerts); err != nil {
		return fmt.Errorf("inject caBundle: %w", err)
	}
	k.serve(pair)
	return nil
}

func (k *Keeper) current() *tls.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.serving
}

// serve switches handshakes that begin from now on to the pair.
func (k *Keeper) serve(pair *tls.Certificate) {
	if c := k.current(); c != nil && bytes.Equal(c.Certificate[0], pair.Certificate[0]) {
		return
	}
	k.mu.Lock()
	k.serving = pair
	k.mu.Unlock()
	k.options.Log.Info("serving certificate", "notAfter", pair.Leaf.NotAfter.UTC().Format(time.RFC3339),
		"serial", pair.Leaf.SerialNumber.Text(16))
}

var errNotReady = errors.New("no serving certificate yet")

// GetCertificate is for tls.Config.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.current(); c != nil {
		return c, nil
	}
	return nil, errNotReady
}

// Configure makes a server use the Keeper's certificates, TLS 1.3 only.
func (k *Keeper) Configure(c *tls.Config) {
	c.MinVersion = tls.VersionTLS13
	c.GetCertificate = k.GetCertificate
}

// Ready is a health check: a certificate is served and not over.
func (k *Keeper) Ready(*http.Request) error {
	c := k.current()
	if c == nil {
		return errNotReady
	}
	if now := k.options.Clock(); now.After(c.Leaf.NotAfter) {
		return fmt.Errorf("the serving certificate expired at %s", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
