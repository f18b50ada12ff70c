// SPDX-License-Identifier: Apache-2.0

// Package e2e runs kubepace in a real cluster of two nodes as its users do: images, manifests, pods, traffic between nodes.
// `make e2e` runs it.
package e2e
