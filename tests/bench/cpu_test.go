// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
	"time"
)

func TestIdleTime(t *testing.T) {
	idle, cpus, err := idleTime("cpu: 0\n  .nohz           : 1\n  .idle_sleeptime : 1000000007 nsecs\n  .iowait_sleeptime: 300 nsecs\ncpu: 1\n  .idle_sleeptime : 2000000000 nsecs\n")
	if err != nil || cpus != 2 || idle != 3000000307 {
		t.Errorf("%v idle of %d processors, %v; want 3.000000307s of 2", idle, cpus, err)
	}
	for _, text := range []string{"", "cpu: 0\n", "  .idle_sleeptime : x nsecs\n", "  .idle_sleeptime : 5 ms\n"} {
		if _, _, err := idleTime(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

// TestCPUTime: work counts.
func TestCPUTime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to read /proc/timer_list")
	}
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
