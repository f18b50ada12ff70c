// SPDX-License-Identifier: Apache-2.0

// Package webhook answers kube-apiserver's admission reviews. Every door through which a pod's annotations can change
// has a handler: pods and pods/status (pods_mutate.go, pods_validate.go), pods/binding and the legacy bindings
// (bindings.go). What the limit is decides package policy; here are decoding, the patch and the response.
//
// Handlers decode only the fields that they judge and patch only our own annotations. An internal failure is never a
// verdict: it is answered with HTTP 500, so that the webhook's failurePolicy decides (failure.go).
package webhook
