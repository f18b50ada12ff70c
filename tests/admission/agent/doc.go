// SPDX-License-Identifier: Apache-2.0

// Package agent tests the node agent's side of the API against a real kube-apiserver, with the manifests' RBAC and
// policies: the condition of pods, the resource that nodes advertise, the Lease and its withdrawal by the webhook's
// leader. The agents are the real loop and the real writers, with their own tokens; only the kernel is played. See package
// lab for what it needs.
package agent
