// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/tests/process"
)

const metricsAddress = "127.0.0.1:9188" // in the node's namespace

// patience bounds every wait for something that is bound to happen.
const patience = 60 * time.Second

// agent is the real binary on the world's node.
type agent struct {
	w       *world
	command []string // the binary, and flags that come last
	source  []string // flags
	*process.Process
	started time.Time
}

func (a *agent) log() string { return filepath.Join(a.w.dir, "agent.log") }

// start starts the process; it takes what was pinned before.
func (a *agent) start() (err error) {
	args := slices.Concat([]string{
		"run", "--bpffs=" + a.w.bpffs(), "--run-dir=" + a.w.runDir(), "--netns-dir=" + a.w.netns(),
		"--cni-cache-dir=" + a.w.results(),
		"--metrics-address=" + metricsAddress,
	}, a.source, a.command[1:])
	a.started = time.Now()
	a.Process, err = process.Start("the agent", a.log(), a.w.Do, a.command[0], args...)
	return err
}

// stop ends the process; it is no error if none runs.
func (a *agent) stop(signal syscall.Signal) error {
	if !a.Running() {
		return nil
	}
	if err := a.Signal(signal); err != nil {
		return err
	}
	_ = a.Wait(patience) // how it ended is in the log
	if a.Running() {
		return errors.Join(errors.New("the agent does not end"), a.Signal(syscall.SIGKILL))
	}
	return nil
}

// restart kills the agent, starts it again and returns how long it took until it knew of every pod and had its limit
// in force. The limits are in force all the time: this is how long changes would have waited.
func (a *agent) restart(ctx context.Context, pods int) (time.Duration, error) {
	if err := a.stop(syscall.SIGKILL); err != nil {
		return 0, err
	}
	// What the killed one knew must not pass for what the new one knows.
	if err := os.Remove(enforcer.StatusPath(a.w.runDir())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if err := a.start(); err != nil {
		return 0, err
	}
	return a.enforced(ctx, pods)
}

// enforced waits until the agent's status says that so many pods are held, and returns the time since its start.
func (a *agent) enforced(ctx context.Context, pods int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if held(a.w.runDir()) == pods {
			return time.Since(a.started), nil
		}
		select {
		case <-a.Ended():
			return 0, fmt.Errorf("the agent ended:\n%s", a.Tail(20))
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for %d pods, %d are held: %w\n%s", pods, held(a.w.runDir()), ctx.Err(), a.Tail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// held is how many pods the agent holds once it knows of all; -1 before.
func held(runDir string) int {
	s, err := enforcer.ReadStatus(runDir)
	if err != nil || !s.Synced {
		return -1
	}
	n := 0
	for _, v := range s.Pods {
		if v.Enforced {
			n++
		}
	}
	return n
}

// cpu is the processor time of the process, exact to the kernel's clock: utime and stime count in ticks of 10 ms.
func (a *agent) cpu() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of a process, as clock_getcpuclockid(3) makes it
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^a.PID())<<3|schedClock, &t); err != nil {
		return 0, fmt.Errorf("read the agent's processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// Memory of the process, in bytes.
type Memory struct {
	Resident int64 `json:"resident_bytes"`
	Own      int64 `json:"resident_anonymous_bytes"` // without the binary's pages, which the page cache shares
	Peak     int64 `json:"resident_peak_bytes"`
	Heap     int64 `json:"go_heap_inuse_bytes"`
}

func (a *agent) memory() (m Memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.PID()))
	if err != nil {
		return m, err
	}
	for name, to := range map[string]*int64{"VmRSS": &m.Resident, "RssAnon": &m.Own, "VmHWM": &m.Peak} {
		match := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindSubmatch(text)
		if match == nil {
			return m, fmt.Errorf("/proc/PID/status has no %s", name)
		}
		kib, err := strconv.ParseInt(string(match[1]), 10, 64)
		if err != nil {
			return m, err
		}
		*to = kib << 10
	}
	metrics, err := a.metrics()
	if err != nil {
		return m, err
	}
	heap, err := gauge(metrics, "go_memstats_heap_inuse_bytes")
	m.Heap = int64(heap)
	return m, err
}

// fds are the open file descriptors.
func (a *agent) fds() (int, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.PID()))
	return len(list), err
}

// metrics is the text of /metrics.
func (a *agent) metrics() (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = a.w.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	response, err := client.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		return "", fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("read metrics: %s", response.Status)
	}
	return string(text), err
}

// gauge is the value of a metric without labels.
func gauge(text, name string) (float64, error) {
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return strconv.ParseFloat(match[1], 64)
}
