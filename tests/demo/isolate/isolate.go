// SPDX-License-Identifier: Apache-2.0

// Package isolate runs a program again in network, mount and process namespaces of its own, so that it may build a
// node there: the machine's own interfaces, mounts and bpffs stay untouched, and everything that the program made
// (links, qdiscs, eBPF programs, mounts, processes) ends with it, whichever way it ends.
package isolate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// marker is in the environment of the program that runs inside.
const marker = "KUBEPACE_ISOLATED"

// Inside reports whether this process is the one that Run started.
func Inside() bool { return os.Getenv(marker) == "1" && os.Getpid() == 1 }

// Run starts this program anew with the same arguments in fresh namespaces and returns its exit status. There it is
// process 1, so the kernel kills whatever it started when it ends. Run passes on SIGTERM and SIGINT, and should Run's
// own process be killed, the kernel kills the one inside.
func Run() (int, error) {
	// The kernel sends Pdeathsig when the thread that forked ends, not the process: keep it.
	runtime.LockOSThread()
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find own program: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C reaches the program inside once, through us
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			// It may have ended in between; Wait tells.
			_ = cmd.Process.Signal(sig)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, fmt.Errorf("wait for the program inside: %w", err)
			}
			return status(cmd.ProcessState), nil
		}
	}
}

// status is the exit status as a shell gives it.
func status(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// mounts are what a node has, private to this mount namespace. The order matters.
var mounts = []struct {
	source, target, kind string
	flags                uintptr
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	// sysfs shows the network namespace that it was mounted in.
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"bpf", "/sys/fs/bpf", "bpf", 0},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
}

// Prepare makes the namespaces that Run gave us fit for a node: private /proc, /sys, bpffs and /run, and none
// of the machine's CNI state.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.target, err)
		}
	}
	// On a machine that is a node itself, its pods are none of ours.
	if _, err := os.Stat("/var/lib/cni"); err == nil {
		if err := unix.Mount("tmpfs", "/var/lib/cni", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("hide /var/lib/cni: %w", err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare node: %w", err)
		}
	}
	return nil
}
