// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Source is where a TLS server has its certificate from: a Server or Files.
type Source interface {
	// Configure makes a server use the certificate of the moment, by TLS 1.3 only.
	Configure(c *tls.Config)
	// Ready is a health check: there is a certificate, and it is not over.
	Ready(r *http.Request) error
}

// ServerOptions configure a Server.
type ServerOptions struct {
	// Client must read from the API server itself, not from a cache.
	Client client.Client
	// Informers tell of changes to the Secret; nil leaves it to Resync alone.
	Informers cache.Informers
	Log       logr.Logger

	// Secret is where the leader's Keeper puts certificates.
	Secret client.ObjectKey
	// Replica names this replica's Lease, beside the Secret; no two replicas may share it.
	Replica string
	// LeaseDuration is for how long the leader waits for this replica after it was last heard of; zero means a minute.
	LeaseDuration time.Duration
	// Resync is how often the Secret is read without an event; zero means a minute.
	Resync time.Duration
	// Retry is how soon a failed round is repeated; zero means a second.
	Retry time.Duration
	// Metrics may be nil.
	Metrics *Metrics
	// Clock; nil means time.Now.
	Clock Clock
}

func (o *ServerOptions) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.LeaseDuration, time.Minute}, {&o.Resync, time.Minute}, {&o.Retry, time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
}

// Server serves what the Secret holds and says so in a Lease. Every replica runs one.
type Server struct {
	options  ServerOptions
	store    store
	presence presence
	wake     waker
	serving  atomic.Pointer[tls.Certificate]

	reported string    // what the Lease says
	renewed  time.Time // when it last did
}

var (
	_ Source                         = (*Server)(nil)
	_ manager.Runnable               = (*Server)(nil)
	_ manager.LeaderElectionRunnable = (*Server)(nil)
)

// NewServer returns a Server that has no certificate until Start.
func NewServer(o ServerOptions) *Server {
	o.setDefaults()
	return &Server{
		options:  o,
		store:    store{client: o.Client, key: o.Secret},
		presence: presence{o.Client, client.ObjectKey{Namespace: o.Secret.Namespace, Name: o.Replica}, o.LeaseDuration, o.Clock},
		wake:     newWaker(),
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (s *Server) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable; it returns when the context ends.
func (s *Server) Start(ctx context.Context) error {
	if err := s.wake.watch(ctx, s.options.Informers, &corev1.Secret{}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		next := min(s.options.Resync, s.options.LeaseDuration/3)
		if err := s.Reconcile(ctx); err != nil && ctx.Err() == nil {
			s.options.Log.Error(err, "certificate is not up to date", "retryIn", s.options.Retry.String())
			next = s.options.Retry
		}
		s.wake.wait(ctx, next)
	}
	farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.presence.leave(farewell); err != nil {
		s.options.Log.Info("the lease stays until it lapses", "reason", err.Error())
	}
	return nil
}

// Reconcile does one round: be known, serve what the Secret holds, say so. The Lease comes before the first look at the
// Secret: a leader that does not know this replica yet has therefore written all that the replica is going to read. A
// Lease that cannot be written keeps nobody from serving.
func (s *Server) Reconcile(ctx context.Context) error {
	var errs []error
	if s.renewed.IsZero() {
		errs = append(errs, s.report(ctx))
	}
	pair, err := s.load(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	s.serve(pair)
	return errors.Join(append(errs, s.report(ctx))...)
}

// report writes the Lease where it is due or says something else.
func (s *Server) report(ctx context.Context) error {
	now, what := s.options.Clock(), ""
	if c := s.serving.Load(); c != nil {
		what = serial(c.Leaf)
	}
	if what == s.reported && !s.renewed.IsZero() && now.Sub(s.renewed) < s.options.LeaseDuration/4 {
		return nil
	}
	if err := s.presence.report(ctx, what); err != nil {
		return err
	}
	s.reported, s.renewed = what, now
	return nil
}

var errNotReady = errors.New("no serving certificate yet")

// load reads the Secret. What cannot be served leaves what is served in place.
func (s *Server) load(ctx context.Context) (*tls.Certificate, error) {
	_, id, err := s.store.read(ctx)
	if err != nil {
		return nil, err
	}
	pair, err := id.Pair()
	if err != nil && s.serving.Load() == nil && len(id.Cert) == 0 {
		return nil, errNotReady // nothing wrong: the leader has not got there
	}
	return pair, err
}

// serve switches handshakes that begin from now on to the pair.
func (s *Server) serve(pair *tls.Certificate) {
	if c := s.serving.Load(); c != nil && bytes.Equal(c.Certificate[0], pair.Certificate[0]) {
		return
	}
	s.serving.Store(pair)
	s.options.Metrics.loaded(pair.Leaf)
	s.options.Log.Info("serving certificate", "notAfter", pair.Leaf.NotAfter.UTC().Format(time.RFC3339), "serial", serial(pair.Leaf))
}

// GetCertificate is for tls.Config.
func (s *Server) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := s.serving.Load(); c != nil {
		return c, nil
	}
	return nil, errNotReady
}

// Configure implements Source.
func (s *Server) Configure(c *tls.Config) { configure(c, s.GetCertificate) }

// Ready implements Source.
func (s *Server) Ready(*http.Request) error { return ready(s.serving.Load(), s.options.Clock()) }

func configure(c *tls.Config, get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) {
	c.MinVersion = tls.VersionTLS13
	c.GetCertificate = get
}

func ready(c *tls.Certificate, now time.Time) error {
	if c == nil {
		return errNotReady
	}
	if now.After(c.Leaf.NotAfter) {
		return fmt.Errorf("the serving certificate expired at %s", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
