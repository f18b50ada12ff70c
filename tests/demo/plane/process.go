// SPDX-License-Identifier: Apache-2.0

package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a program in the background with its output in a log file. Stop it, or let process 1 end.
type Process struct {
	Name string
	Log  string // path of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why it ended; read after done
}

// StartProcess runs path with args; its output goes to logs/NAME.log.
func StartProcess(name, logs, path string, args ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(logs, name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.Log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close() // the process has a descriptor of its own
	fmt.Fprintf(log, "# %s %s\n", path, strings.Join(args, " "))
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Signal sends a signal to the process group.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := syscall.Kill(-p.cmd.Process.Pid, sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Stop ends the process group, kindly at first, and waits for it.
func (p *Process) Stop() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		// Gone already is fine.
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
		select {
		case <-p.done:
			return
		case <-time.After(5 * time.Second):
		}
	}
}

// ErrEnded means that a process ended which should have kept running.
var ErrEnded = errors.New("ended unexpectedly")

// Wait polls ready until it returns nil, and gives up when the process or ctx ends; then the error carries the last
// lines of the log and what ready said.
func (p *Process) Wait(ctx context.Context, ready func(context.Context) error) error {
	var last error
	for {
		if last = ready(ctx); last == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s %w: %w\n%s", p.Name, ErrEnded, p.err, p.Tail(15))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w)\n%s", p.Name, last, context.Cause(ctx), p.Tail(15))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Tail is the last lines of the log, indented.
func (p *Process) Tail(lines int) string {
	content, err := os.ReadFile(p.Log)
	if err != nil {
		return "    " + err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	all = all[max(0, len(all)-lines):]
	return "    " + string(bytes.Join(all, []byte("\n    ")))
}
