// SPDX-License-Identifier: Apache-2.0

// Package cni pins the version of the CNI plugins: the bandwidth plugin that the benchmark compares with, and those that
// connect pods in tests. It is a module of its own, so that their dependencies never reach kubepace's go.mod.
package cni
