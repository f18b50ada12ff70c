// SPDX-License-Identifier: Apache-2.0

// Package lab runs a real kube-apiserver and etcd (envtest) and replicas of kubepace-webhook's binary with the project's
// manifests, behind a TCP balancer that stands for the Service, for tests and benchmarks.
//
// Replicas have the identity and the RBAC of the manifests' ServiceAccount. Of the manifests only clientConfig.service is
// replaced, by the balancer's URL: there are no nodes that a Service could lead to.
package lab
