// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kubepace/kubepace/certs"
	"github.com/kubepace/kubepace/webhook/nodes"
)

// leaderLease is the Lease that replicas compete for.
const leaderLease = "kubepace-webhook-leader"

// leadership competes for the lead, term after term. A manager ends the whole process when it loses the lead, which
// happens whenever the API server is away for some seconds; a replica that serves must not end for that. So each
// term has a manager of its own, inside the one that serves, on the same caches.
type leadership struct {
	config  *rest.Config
	options *options
	direct  client.Client // reads from the API server itself
	shared  cache.Cache
	log     logr.Logger
	stop    context.Context // ends before Start's

	events typedcorev1.EventsGetter

	restamping func(ctrl.Manager) error // adds the re-stamping controller
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: this is where it happens.
func (*leadership) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable. The lead is given up at the first sign of the end, so that another replica takes
// over while this one drains.
func (l *leadership) Start(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.stop, cancel)()
	for ctx.Err() == nil {
		err := l.term(ctx)
		if ctx.Err() != nil {
			break
		}
		l.log.Info("not leading any more", "reason", fmt.Sprint(err))
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// term competes, leads, and returns when the lead is lost or the context ends.
func (l *leadership) term(ctx context.Context) error {
	duration := l.options.LeaseDuration
	renew, retry, anyName := duration*2/3, duration/8, true
	mgr, err := ctrl.NewManager(l.config, ctrl.Options{
		Scheme: scheme.Scheme, Logger: l.log.WithName("leader"),
		NewCache:       func(*rest.Config, cache.Options) (cache.Cache, error) { return running{l.shared}, nil },
		LeaderElection: true, LeaderElectionID: leaderLease, LeaderElectionNamespace: l.options.Namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &duration, RenewDeadline: &renew, RetryPeriod: &retry,
		Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		// Controllers of an earlier term had the same names.
		Controller: ctrlconfig.Controller{SkipNameValidation: &anyName},
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if err := l.addJobs(mgr); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// addJobs adds what only the leader does. It is called once for each term.
func (l *leadership) addJobs(mgr ctrl.Manager) error {
	if l.options.CertDir == "" {
		if err := mgr.Add(newKeeper(l.options, l.direct, l.shared, l.log)); err != nil {
			return fmt.Errorf("add certificate keeper: %w", err)
		}
	}
	if err := l.restamping(mgr); err != nil {
		return fmt.Errorf("add re-stamping controller: %w", err)
	}
	return nodes.Add(mgr, nodes.Options{Client: l.direct, Namespace: l.options.Namespace, Events: l.events, Log: l.log.WithName("nodes"), Every: l.options.AgentCheck})
}

func newKeeper(o *options, direct client.Client, informers cache.Informers, log logr.Logger) *certs.Keeper {
	service := o.ServiceName + "." + o.Namespace + ".svc"
	return certs.NewKeeper(certs.Options{
		Client: direct, Informers: informers, Log: log.WithName("certs"),
		Secret: client.ObjectKey{Namespace: o.Namespace, Name: o.SecretName},
		Names: certs.Names{
			DNS: append([]string{service, service + ".cluster.local"}, o.ExtraDNSNames...),
			IPs: o.ExtraIPs,
		},
		MutatingConfiguration: o.MutatingConfiguration, ValidatingConfiguration: o.ValidatingConfiguration,
		WebhookSuffix: webhookSuffix, Validity: o.Validity, Propagation: o.CAPropagation,
	})
}

// running is a cache that somebody else runs.
type running struct{ cache.Cache }

// Start waits for the end.
func (running) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
