// SPDX-License-Identifier: Apache-2.0

// Package node pins what a node runs besides kubelet and kube-proxy: containerd, the CNI plugins and flanneld. It is a
// module of its own, because containerd wants other versions of Kubernetes' libraries than Kubernetes itself.
package node
