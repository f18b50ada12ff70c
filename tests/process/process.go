// SPDX-License-Identifier: Apache-2.0

// Package process runs programs in the background, for tests, benchmarks and the demonstration.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ErrEnded means that a process ended which should have kept running.
var ErrEnded = errors.New("ended unexpectedly")

// Process is a program in the background with its output in a log file. Stop it, or let process 1 end.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{} // closed when it has ended
	err       error         // how it ended; read after done
}

// Start runs path with args; its output is appended to the log file. In says where it starts, such as netlab's
// Namespace.Do; nil is here.
func Start(name, log string, in func(func() error) error, path string, args ...string) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer file.Close() // the process has a descriptor of its own
	fmt.Fprintf(file, "# %s %s\n", path, strings.Join(args, " "))
	p := &Process{name: name, log: log, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = file, file
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if in == nil {
		in = func(start func() error) error { return start() }
	}
	if err := in(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Running is false once the process has ended, and before it was started.
func (p *Process) Running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process group; that it is gone already is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Wait returns how the process ended, or that it does not within the patience.
func (p *Process) Wait(patience time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		return fmt.Errorf("%s does not end\n%s", p.name, p.Tail(15))
	}
}

// Stop ends the process group, kindly within the patience, and returns how it ended. It is no error if nothing runs.
func (p *Process) Stop(patience time.Duration) error {
	if !p.Running() {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := p.Wait(patience)
	if !p.Running() {
		return err
	}
	err = errors.Join(err, p.Signal(syscall.SIGKILL))
	<-p.done
	return err
}

// Await polls ready until it returns nil, and gives up when the process or ctx ends; then the error carries the last
// lines of the log and what ready said.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	for {
		last := ready(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s %w: %w\n%s", p.name, ErrEnded, p.err, p.Tail(15))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w)\n%s", p.name, last, context.Cause(ctx), p.Tail(15))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Tail is the last lines of the log, indented.
func (p *Process) Tail(lines int) string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return "    " + err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}
