// SPDX-License-Identifier: Apache-2.0

// Package admission tests the webhook's binary with the project's manifests against a real kube-apiserver and etcd.
// KUBEBUILDER_ASSETS names the folder of kube-apiserver, etcd and kubectl; `tests/kube/build.sh etcd kube-apiserver
// kubectl` makes one. Without it the tests are skipped, or fail where CI=true.
//
// The webhook runs with the identity and the RBAC of its ServiceAccount. Of the manifests only clientConfig.service is
// replaced, by a loopback URL: there are no nodes that a Service could lead to.
package admission
