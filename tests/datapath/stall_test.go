// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
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

// stallWatcher is set in the environment of a process of its own: in the tests' the senders hold Go's own processors.
const stallWatcher = "KUBEPACE_STALL_WATCHER"

func init() {
	if os.Getenv(stallWatcher) == "" {
		return
	}
	if err := runStallWatcher(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runStallWatcher asks for each processor with the highest priority there is, until its input ends, and writes by how
// many nanoseconds it was late at most: the host had taken the processor away, or the kernel let nobody run.
func runStallWatcher() error {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("read affinity: %w", err)
	}
	runtime.GOMAXPROCS(all.Count() + 2)
	var mu sync.Mutex
	var worst time.Duration
	failed := make(chan error, all.Count())
	for cpu := range 64 * len(all) {
		if !all.IsSet(cpu) {
			continue
		}
		go func() {
			runtime.LockOSThread()
			var own unix.CPUSet
			own.Set(cpu)
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}
			failed <- errors.Join(unix.SchedSetaffinity(0, &own), unix.SchedSetAttr(0, &attr, 0))
			tick := unix.NsecToTimespec(int64(stallTick))
			for last := time.Now(); ; {
				_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &tick, nil)
				now := time.Now()
				mu.Lock()
				worst = max(worst, now.Sub(last)-stallTick)
				mu.Unlock()
				last = now
			}
		}()
	}
	for range all.Count() {
		if err := <-failed; err != nil {
			return fmt.Errorf("take the highest priority: %w", err)
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	mu.Lock()
	defer mu.Unlock()
	fmt.Println(worst.Nanoseconds())
	return err
}

// watchStalls watches until stop is called, which says for how long the machine stood still at most.
func watchStalls(t *testing.T) (stop func() time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("find the tests' own binary: %v", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), stallWatcher+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("watch stalls: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("watch stalls: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("watch stalls: %v", err)
	}
	var once sync.Once
	end := func() { once.Do(func() { _ = in.Close(); _ = cmd.Wait() }) }
	t.Cleanup(end)
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		t.Fatalf("watch stalls: %q, %v", line, err)
	}
	return func() time.Duration {
		_ = in.Close()
		line, err := lines.ReadString('\n')
		end()
		ns, bad := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err := errors.Join(err, bad); err != nil {
			t.Fatalf("watch stalls: %v", err)
		}
		return time.Duration(ns)
	}
}

// TestWatchStalls: some lateness there always is; none would mean that nobody looks.
func TestWatchStalls(t *testing.T) {
	stop := watchStalls(t)
	time.Sleep(10 * stallTick)
	if late := stop(); late <= 0 || late > 10*time.Second {
		t.Errorf("late by %v", late)
	}
}
