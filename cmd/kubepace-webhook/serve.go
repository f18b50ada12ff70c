// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	crwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/kubepace/kubepace/certs"
	"github.com/kubepace/kubepace/webhook"
)

// webhookSuffix ends the name of every webhook in our configurations.
const webhookSuffix = ".kubepace.io"

// serve runs until the context ends.
func serve(ctx context.Context, config *rest.Config, o *options, log logr.Logger, draining *atomic.Bool) error {
	direct, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	var keeper *certs.Keeper // the server asks for certificates only once it runs
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme.Scheme, Logger: log, Cache: cacheOptions(o),
		WebhookServer: crwebhook.NewServer(crwebhook.Options{
			Host: o.ListenAddress, Port: o.Port,
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { keeper.Configure(c) }},
		}),
		Metrics:                metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress: o.HealthAddress,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	keeper = newKeeper(o, direct, mgr.GetCache(), log)
	if err := mgr.Add(keeper); err != nil {
		return fmt.Errorf("add certificate keeper: %w", err)
	}
	// Asked for now, so that the manager's start waits for it; otherwise the first pod would.
	if _, err := mgr.GetCache().GetInformer(ctx, webhook.NamespaceMetadata()); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	counters, err := webhook.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	server := mgr.GetWebhookServer() // the first call makes the manager run it
	webhook.Register(server, webhook.Options{
		Cluster: o.cluster, Metrics: counters,
		Namespaces: &webhook.NamespaceReader{Cache: mgr.GetCache(), Live: direct},
	})
	if err := addChecks(mgr, keeper, server, draining); err != nil {
		return err
	}
	log.Info("starting", "clusterDefault", o.ClusterDefault, "clusterMin", o.ClusterMin, "clusterMax", o.ClusterMax, "port", o.Port)
	return mgr.Start(ctx)
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
		WebhookSuffix: webhookSuffix,
	})
}

// cacheOptions narrow every watch to what we read, so that RBAC can name the objects.
func cacheOptions(o *options) cache.Options {
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}: {
				Namespaces: map[string]cache.Config{o.Namespace: {FieldSelector: named(o.SecretName)}},
			},
			&admissionv1.MutatingWebhookConfiguration{}:   {Field: named(o.MutatingConfiguration)},
			&admissionv1.ValidatingWebhookConfiguration{}: {Field: named(o.ValidatingConfiguration)},
		},
	}
}

// addChecks makes ready mean: serving, with a valid certificate, with synced caches, and not on the way out.
func addChecks(mgr ctrl.Manager, keeper *certs.Keeper, server crwebhook.Server, draining *atomic.Bool) error {
	synced := &atomic.Bool{}
	err := mgr.Add(runnable(func(ctx context.Context) error {
		synced.Store(mgr.GetCache().WaitForCacheSync(ctx))
		return nil
	}))
	if err != nil {
		return fmt.Errorf("add cache check: %w", err)
	}
	failing := func(bad func() bool, message string) healthz.Checker {
		return func(*http.Request) error {
			if bad() {
				return errors.New(message)
			}
			return nil
		}
	}
	return errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("certificates", keeper.Ready),
		mgr.AddReadyzCheck("server", server.StartedChecker()),
		mgr.AddReadyzCheck("caches", failing(func() bool { return !synced.Load() }, "namespaces are not synced yet")),
		mgr.AddReadyzCheck("draining", failing(draining.Load, "shutting down")),
	)
}

// runnable is a manager.Runnable for every replica.
type runnable func(context.Context) error

func (r runnable) Start(ctx context.Context) error { return r(ctx) }

func (runnable) NeedLeaderElection() bool { return false }
