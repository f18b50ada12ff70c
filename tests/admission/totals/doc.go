// SPDX-License-Identifier: Apache-2.0

// Package totals tests what ResourceQuotas and LimitRanges add up to: kube-apiserver and etcd, kube-controller-manager's
// quota controller, and three replicas of the webhook with the manifests as they are shipped, all of them real.
package totals
