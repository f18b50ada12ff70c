// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
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

	// Secret holds the identity that all replicas share; the replicas' Leases are in its namespace.
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
	// Propagation is how long a CA is in every caBundle before a certificate by it is served; zero means 10 s. API servers
	// watch the configurations and are usually milliseconds behind, but none says so.
	Propagation time.Duration
	// Resync is how often everything is compared without an event; zero means a minute.
	Resync time.Duration
	// Retry is how soon a failed round is repeated, and replicas that still serve the old certificate are looked at
	// again; zero means a second.
	Retry time.Duration
	// Clock; nil means time.Now.
	Clock Clock
}

func (o *Options) setDefaults() {
	if o.Validity == (Validity{}) {
		o.Validity = DefaultValidity
	}
	if o.Propagation == 0 {
		o.Propagation = 10 * time.Second
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

// Keeper keeps the identity valid and injected. The leader among the replicas runs one; two at a time, while a leader
// learns that it is none any more, do no harm.
type Keeper struct {
	options  Options
	store    store
	inject   injector
	register register
	wake     waker

	trustedSince time.Time // since when every caBundle has been what it is
	lagging      string    // the replicas last logged as lagging
}

var (
	_ manager.Runnable               = (*Keeper)(nil)
	_ manager.LeaderElectionRunnable = (*Keeper)(nil)
)

// NewKeeper returns a Keeper that does nothing until Start.
func NewKeeper(o Options) *Keeper {
	o.setDefaults()
	return &Keeper{
		options:  o,
		store:    store{client: o.Client, key: o.Secret},
		inject:   injector{o.Client, o.MutatingConfiguration, o.ValidatingConfiguration, o.WebhookSuffix},
		register: register{client: o.Client, namespace: o.Secret.Namespace, clock: o.Clock},
		wake:     newWaker(),
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (k *Keeper) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable; it returns when the context ends.
func (k *Keeper) Start(ctx context.Context) error {
	if err := k.wake.watch(ctx, k.options.Informers, k.watched()...); err != nil {
		return err
	}
	for ctx.Err() == nil {
		next, err := k.Reconcile(ctx)
		if err != nil && ctx.Err() == nil {
			k.options.Log.Error(err, "certificates are not in order yet", "retryIn", k.options.Retry.String())
			next = k.options.Retry
		}
		k.wake.wait(ctx, next)
	}
	return nil
}

func (k *Keeper) watched() []client.Object {
	objects := []client.Object{&corev1.Secret{}}
	if k.options.MutatingConfiguration != "" {
		objects = append(objects, &admissionv1.MutatingWebhookConfiguration{})
	}
	if k.options.ValidatingConfiguration != "" {
		objects = append(objects, &admissionv1.ValidatingWebhookConfiguration{})
	}
	return objects
}

// Reconcile does one round: take the steps that are due, and put what is to be trusted into the configurations. It
// returns when to look again at the latest.
func (k *Keeper) Reconcile(ctx context.Context) (again time.Duration, err error) {
	secret, id, err := k.store.read(ctx)
	if err != nil {
		return 0, err
	}
	if id, err = k.prepare(ctx, secret, id); err != nil {
		return 0, err
	}
	changed, err := k.inject.inject(ctx, id.CACerts)
	if err != nil {
		k.trustedSince = time.Time{}
		return 0, fmt.Errorf("inject caBundle: %w", err)
	}
	now := k.options.Clock()
	if changed || k.trustedSince.IsZero() {
		k.trustedSince = now
	}
	switch id.next(now, k.options.Names) {
	case stepPromote:
		if rest := k.options.Propagation - now.Sub(k.trustedSince); rest > 0 {
			return rest, nil
		}
		return 0, k.promote(ctx, secret, id)
	case stepRetire:
		return k.retire(ctx, secret, id)
	default:
		return min(k.options.Resync, id.nextAt().Sub(now)+time.Millisecond), nil
	}
}

// prepare takes the steps that wait for nobody, and returns the identity that they lead to.
func (k *Keeper) prepare(ctx context.Context, secret *corev1.Secret, id Identity) (Identity, error) {
	now := k.options.Clock()
	switch due := id.next(now, k.options.Names); due {
	case stepIssue:
		issued, err := id.issue(now, k.options.Names, k.options.Validity)
		if err != nil {
			return Identity{}, err
		}
		return issued, k.write(ctx, secret, issued, due)
	case stepStage:
		trusted, err := k.inject.trusted(ctx)
		if err != nil {
			return Identity{}, err
		}
		staged, err := id.stage(now, trusted, k.options.Validity)
		if err != nil {
			return Identity{}, err
		}
		if staged.hurried() {
			if staged, err = staged.promote(now, k.options.Names, k.options.Validity); err != nil {
				return Identity{}, err
			}
		}
		return staged, k.write(ctx, secret, staged, due)
	default:
		return id, nil
	}
}

func (k *Keeper) promote(ctx context.Context, secret *corev1.Secret, id Identity) error {
	promoted, err := id.promote(k.options.Clock(), k.options.Names, k.options.Validity)
	if err != nil {
		return err
	}
	return k.write(ctx, secret, promoted, stepPromote)
}

// retire drops old CAs once nobody serves by them, and expired ones in any case.
func (k *Keeper) retire(ctx context.Context, secret *corev1.Secret, id Identity) (again time.Duration, err error) {
	pair, err := id.Pair()
	if err != nil {
		return 0, err
	}
	names, total, err := k.register.waiting(ctx, serial(pair.Leaf))
	if err != nil {
		return 0, err
	}
	if total > 0 && len(names) == 0 {
		retired, err := id.retire(k.options.Clock())
		if err != nil {
			return 0, err
		}
		return 0, k.write(ctx, secret, retired, stepRetire)
	}
	if list := strings.Join(names, " "); list != k.lagging {
		k.lagging = list
		k.options.Log.Info("the old CA stays trusted: replicas serve an earlier certificate", "replicas", list)
	}
	if valid := trustBundle(certificates(id.CACerts), k.options.Clock()); !bytes.Equal(valid, id.CACerts) {
		id.CACerts = valid
		return 0, k.write(ctx, secret, id, stepRetire)
	}
	return k.options.Retry, nil
}

func (k *Keeper) write(ctx context.Context, secret *corev1.Secret, id Identity, why step) error {
	if err := k.store.write(ctx, secret, id); err != nil {
		return err
	}
	k.options.Log.Info("rotated certificates", "step", why.String(), "trustedCAs", len(certificates(id.CACerts)))
	return nil
}
