// SPDX-License-Identifier: Apache-2.0

package cnilab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Agent is the real kubepace-enforcer on a Node.
type Agent struct {
	cmd  *exec.Cmd
	read chan struct{}

	mu       sync.Mutex
	log      bytes.Buffer
	enforced map[string]Enforced // the latest by pod UID
	started  time.Time
}

// ParseEnforced reads a line of the log; false where it says something else.
func ParseEnforced(line []byte) (e Enforced, ok bool) {
	err := json.Unmarshal(line, &e)
	return e, err == nil && e.Message == "limit enforced"
}

// Enforced is one line of the agent's log: a limit came into force, or changed.
type Enforced struct {
	At      time.Time `json:"ts"`
	Message string    `json:"msg"`
	Pod     string    `json:"pod"`
	UID     string    `json:"uid"`
	Limit   string    `json:"limit"`
	Devices []string  `json:"devices"`
}

// maxLog bounds what is kept of the agent's log.
const maxLog = 4 << 20

// StartAgent starts it with the node's folders and these flags.
func (n *Node) StartAgent(flags ...string) (*Agent, error) {
	a := &Agent{read: make(chan struct{}), enforced: map[string]Enforced{}, started: time.Now()}
	a.cmd = exec.Command(n.opts.Enforcer, append([]string{
		"run", "--bpffs", n.BPFFS, "--run-dir", n.RunDir, "--netns-dir", n.NetnsDir, "--cni-cache-dir", n.ResultsDir(),
	}, flags...)...)
	stderr, err := a.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := n.Namespace.Do(a.cmd.Start); err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	go a.follow(stderr)
	return a, nil
}

func (a *Agent) follow(stderr io.Reader) {
	defer close(a.read)
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e, ok := ParseEnforced(lines.Bytes())
		a.mu.Lock()
		if a.log.Len() < maxLog {
			a.log.Write(lines.Bytes())
			a.log.WriteByte('\n')
		}
		if ok {
			a.enforced[e.UID] = e
		}
		a.mu.Unlock()
	}
}

// Enforced is what the agent said last of a pod's limit.
func (a *Agent) Enforced(uid string) (Enforced, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.enforced[uid]
	return e, ok
}

// Count is how many pods it said are held.
func (a *Agent) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.enforced)
}

// Log is what the agent wrote.
func (a *Agent) Log() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.String()
}

// Stop ends the agent by a signal. Its error tells of an exit code that is not 0.
func (a *Agent) Stop(signal syscall.Signal) error {
	if err := a.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	<-a.read
	err := a.cmd.Wait()
	var exit *exec.ExitError
	if signal == syscall.SIGKILL && errors.As(err, &exit) {
		return nil
	}
	return err
}
