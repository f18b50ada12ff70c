// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHz is the unit of /proc/stat, fixed by the kernel's interface.
const userHz = 100

// cpuTime is how long all processors of the machine have worked since it started: all time but the idle. The kernel
// takes the idle time by its clock, and samples the rest at its ticks, which work that timers start escapes.
func cpuTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the time since the start: %w", err)
	}
	idle, cpus, err := idleTime(string(text))
	return time.Duration(now.Nano())*time.Duration(cpus) - idle, err
}

// idleTime adds up what /proc/stat counts as idle and as waiting for disks, of all processors that it shows.
func idleTime(stat string) (idle time.Duration, cpus int, err error) {
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[0] == "cpu" || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		cpus++
		for _, field := range fields[4:6] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("processor time: %w", err)
			}
			idle += time.Duration(n) * (time.Second / userHz)
		}
	}
	if cpus == 0 {
		return 0, 0, errors.New("processor time: /proc/stat has an unknown form")
	}
	return idle, cpus, nil
}
