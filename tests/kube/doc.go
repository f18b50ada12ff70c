// SPDX-License-Identifier: Apache-2.0

// Package kube pins the Kubernetes and etcd versions that the tests and the demo run against. It is a module of
// its own, so that the dependencies of a whole control plane never reach kubepace's go.mod.
package kube
