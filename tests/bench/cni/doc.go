// SPDX-License-Identifier: Apache-2.0

// Package cni pins the version of the CNI bandwidth plugin that the benchmark compares with. It is a module of its
// own, so that the plugin's dependencies never reach kubepace's go.mod.
package cni
