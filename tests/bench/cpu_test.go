// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"
)

func TestIdleTime(t *testing.T) {
	idle, cpus, err := idleTime("cpu  9 9 9 999 9 9 9 0 0 0\ncpu0 1 2 3 100 10 4 5 0 0 0\ncpu1 1 2 3 200 20 4 5 0 0 0\nintr 55 1\n")
	if err != nil || cpus != 2 || idle != 3300*time.Millisecond {
		t.Errorf("%v idle of %d processors, %v; want 3.3s of 2", idle, cpus, err)
	}
	for _, text := range []string{"", "cpu 1 2 3 4 5 6 7\n", "cpu0 1 2 3 x 5 6 7\n"} {
		if _, _, err := idleTime(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

// TestCPUTime: work counts.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime()
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 200*time.Millisecond; {
	}
	after, err := cpuTime()
	if err != nil {
		t.Fatal(err)
	}
	if after <= before {
		t.Errorf("%v of work before, %v after", before, after)
	}
}
