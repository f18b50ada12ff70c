// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime/debug"
)

// gcPercent collects garbage at half of Go's default growth: an agent is on every node, its heap is a few MiB, and
// most of its memory is what the heap grew to between two collections.
const gcPercent = 50

// spareMemory leaves an administrator's own setting alone.
func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
