// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/kubepace/kubepace/webhook"
	"github.com/kubepace/kubepace/webhook/policy"
	"github.com/kubepace/kubepace/webhook/restamp"
)

// policies finds what holds in a namespace.
type policies struct {
	cluster    policy.Cluster
	namespaces webhook.Namespaces
}

// Of implements restamp.Policies.
func (p policies) Of(ctx context.Context, namespace string) (policy.Policy, error) {
	ns, err := p.namespaces.Settings(ctx, namespace)
	if err != nil {
		return policy.Policy{}, err
	}
	return policy.Resolve(p.cluster, ns), nil
}

// registerSettings puts the checks of what policy teams set, and the forecast for workloads, on the server.
func registerSettings(server webhook.Server, o *options, direct client.Client, found restamp.Policies, counters *webhook.Metrics) {
	webhook.RegisterSettings(server, &webhook.Settings{
		Cluster: o.cluster, Live: direct,
		Governed: webhook.Governed{Reader: direct, Configuration: o.MutatingConfiguration},
	}, &webhook.Workloads{Policies: found}, counters)
}

// restamper returns what puts the re-stamping controller into the manager of each term of the leader.
func restamper(config *rest.Config, o *options, found restamp.Policies) (func(ctrl.Manager) error, error) {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	counters, err := restamp.NewMetrics(metrics.Registry)
	if err != nil {
		return nil, err
	}
	return func(mgr ctrl.Manager) error {
		return restamp.Add(mgr, restamp.Options{
			Policies:  found,
			Governed:  webhook.Governed{Reader: mgr.GetCache(), Configuration: o.MutatingConfiguration},
			Namespace: webhook.NamespaceMetadata(), Also: webhook.SettingsObjects(), Events: clients.CoreV1().Events(corev1.NamespaceAll),
			PodsPerSecond: o.RestampRate, Metrics: counters,
		})
	}, nil
}
