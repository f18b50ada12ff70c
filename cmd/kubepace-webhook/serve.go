// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync/atomic"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
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
	"github.com/kubepace/kubepace/webhook/restamp"
)

// webhookSuffix ends the name of every webhook in our configurations.
const webhookSuffix = ".kubepace.io"

// serve runs until ctx ends; what only the leader does ends with stop, which is earlier by the drain's delay.
func serve(ctx, stop context.Context, config *rest.Config, o *options, log logr.Logger, draining *atomic.Bool) error {
	// Our own webhook's, about the pods that re-stamping marks: events tell of those, and the log had a line for each.
	config = rest.CopyConfig(config)
	config.WarningHandler = rest.NoWarnings{}
	// As Kubernetes' own controllers: from 1.37 on the API server would compress each event of each pod, for a network that
	// is near. The agents are many, and get few.
	config.DisableCompression = true
	config.Wrap(restamp.CoalesceWatch)
	direct, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	var source certs.Source // the server asks for certificates only once it runs
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme.Scheme, Logger: log, Cache: cacheOptions(o),
		WebhookServer:          newServer(o, log.WithName("admission"), func(c *tls.Config) { source.Configure(c) }),
		Metrics:                metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress: o.HealthAddress,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if source, err = addSource(mgr, o, direct, log); err != nil {
		return err
	}
	// Asked for now, so that the manager's start waits for it; otherwise the first pod would.
	for _, kind := range append(webhook.SettingsObjects(), webhook.NamespaceMetadata()) {
		if _, err := mgr.GetCache().GetInformer(ctx, kind); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	lastGood, err := webhook.NewLastGood(ctx, mgr.GetCache())
	if err != nil {
		return err
	}
	counters, err := webhook.NewMetrics(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	server := mgr.GetWebhookServer() // the first call makes the manager run it
	namespaces := &webhook.NamespaceReader{Cache: mgr.GetCache(), Live: direct, LastGood: lastGood}
	found := policies{o.cluster, namespaces}
	webhook.Register(movingOn{server, draining}, webhook.Options{Cluster: o.cluster, Metrics: counters, Namespaces: namespaces})
	registerSettings(movingOn{server, draining}, o, direct, found, counters)
	restamping, err := restamper(config, o, found)
	if err != nil {
		return err
	}
	events, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("configure client for events: %w", err)
	}
	if err := mgr.Add(&leadership{
		config: config, options: o, direct: direct, shared: mgr.GetCache(), log: log, stop: stop, restamping: restamping, events: events,
	}); err != nil {
		return fmt.Errorf("add leader election: %w", err)
	}
	if err := addChecks(mgr, source, server, draining); err != nil {
		return err
	}
	log.Info("starting", "clusterDefault", o.ClusterDefault, "clusterMin", o.ClusterMin, "clusterMax", o.ClusterMax, "port", o.Port)
	return mgr.Start(ctx)
}

// addSource makes every replica serve the certificates of the Secret, or of files.
func addSource(mgr ctrl.Manager, o *options, direct client.Client, log logr.Logger) (certs.Source, error) {
	counters, err := certs.NewMetrics(metrics.Registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if o.CertDir != "" {
		files, err := certs.NewFiles(o.CertDir, counters)
		if err != nil {
			return nil, err
		}
		return files, mgr.Add(files)
	}
	server := certs.NewServer(certs.ServerOptions{
		Client: direct, Informers: mgr.GetCache(), Log: log.WithName("certs"), Metrics: counters,
		Secret:  client.ObjectKey{Namespace: o.Namespace, Name: o.SecretName},
		Replica: o.ReplicaName, LeaseDuration: 4 * o.LeaseDuration,
	})
	return server, mgr.Add(server)
}

// cacheOptions narrow every watch to what we read, so that RBAC can name the objects.
func cacheOptions(o *options) cache.Options {
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }
	byObject := map[client.Object]cache.ByObject{
		&corev1.Secret{}: {
			Namespaces: map[string]cache.Config{o.Namespace: {FieldSelector: named(o.SecretName)}},
		},
		&corev1.Pod{}: restamp.PodCache(), // watched by the leader only
		&admissionv1.MutatingWebhookConfiguration{}:   {Field: named(o.MutatingConfiguration)},
		&admissionv1.ValidatingWebhookConfiguration{}: {Field: named(o.ValidatingConfiguration)},
	}
	maps.Copy(byObject, webhook.SettingsCache())
	return cache.Options{DefaultTransform: cache.TransformStripManagedFields(), ByObject: byObject}
}

// addChecks makes ready mean: serving, with a valid certificate, with synced caches, and not on the way out.
func addChecks(mgr ctrl.Manager, source certs.Source, server crwebhook.Server, draining *atomic.Bool) error {
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
		mgr.AddReadyzCheck("certificates", source.Ready),
		mgr.AddReadyzCheck("server", server.StartedChecker()),
		mgr.AddReadyzCheck("caches", failing(func() bool { return !synced.Load() }, "namespaces, limit ranges and quotas are not synced yet")),
		mgr.AddReadyzCheck("draining", failing(draining.Load, "shutting down")),
	)
}

// runnable is a manager.Runnable for every replica.
type runnable func(context.Context) error

func (r runnable) Start(ctx context.Context) error { return r(ctx) }

func (runnable) NeedLeaderElection() bool { return false }
