// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stallTick is how often each processor is asked for, stallVoid the time that it may be late. A window of 5 s may be
// 100 ms off: one in which the machine stood still for more than half of that says nothing of the datapath.
const (
	stallTick = 5 * time.Millisecond
	stallVoid = 50 * time.Millisecond
)

// watchStalls asks for each processor with the highest priority there is until stop is called, which says by how much
// the machine was late at most: the host had taken the processor away, or the kernel let nobody run.
func watchStalls(t *testing.T) (stop func() time.Duration) {
	t.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatalf("read affinity: %v", err)
	}
	var ended atomic.Bool
	var watchers sync.WaitGroup
	var mu sync.Mutex
	var worst time.Duration
	for cpu := range 64 {
		if !all.IsSet(cpu) {
			continue
		}
		watchers.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread with its priority ends here
			var own unix.CPUSet
			own.Set(cpu)
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}
			if err := unix.SchedSetaffinity(0, &own); err != nil {
				t.Errorf("set affinity: %v", err)
			}
			if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
				t.Errorf("set priority: %v", err)
			}
			tick := unix.NsecToTimespec(int64(stallTick))
			late := time.Duration(0)
			for last := time.Now(); !ended.Load(); {
				_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &tick, nil)
				now := time.Now()
				late, last = max(late, now.Sub(last)-stallTick), now
			}
			mu.Lock()
			defer mu.Unlock()
			worst = max(worst, late)
		})
	}
	return func() time.Duration {
		ended.Store(true)
		watchers.Wait()
		return worst
	}
}
