// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// process is the webhook's binary on free loopback ports; it can be stopped and started again.
type process struct {
	binary, kubeconfig, logFile string
	port, health, metrics       int
	url                         string
	cmd                         *exec.Cmd
	log                         *os.File
	exited                      chan error
	injected                    func() bool // whether the API server can trust the certificate
}

func newProcess(binary, kubeconfig, logFile string, injected func() bool) (*process, error) {
	p := &process{binary: binary, kubeconfig: kubeconfig, logFile: logFile, injected: injected}
	for _, port := range []*int{&p.port, &p.health, &p.metrics} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		*port = l.Addr().(*net.TCPAddr).Port
		defer l.Close()
	}
	p.url = fmt.Sprintf("https://127.0.0.1:%d", p.port)
	return p, nil
}

func (p *process) start() error {
	var err error
	if p.log, err = os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	p.cmd = exec.Command(p.binary,
		"--kubeconfig="+p.kubeconfig, "--listen-address=127.0.0.1", fmt.Sprintf("--port=%d", p.port),
		fmt.Sprintf("--health-address=127.0.0.1:%d", p.health), fmt.Sprintf("--metrics-address=127.0.0.1:%d", p.metrics),
		"--extra-ips="+lab.ExtraIPs, "--cluster-max=10G", "--drain-delay=2s", "--replica-name=only")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.exited = make(chan error, 1)
	go func() { p.exited <- p.cmd.Wait() }()
	return nil
}

// waitReady waits for readiness and the caBundle, without which the API server cannot call.
func (p *process) waitReady() error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-p.exited:
			p.exited <- err
			return fmt.Errorf("the webhook ended: %w\n%s", err, p.tail())
		default:
		}
		if code, _ := p.readyz(); code == http.StatusOK && p.injected() {
			return nil
		}
	}
	_, body := p.readyz()
	return fmt.Errorf("the webhook is not ready after %s: %s\n%s", patience, body, p.tail())
}

func (p *process) readyz() (int, string) {
	return get(fmt.Sprintf("http://127.0.0.1:%d/readyz?verbose", p.health))
}

// scrape is the text of /metrics.
func (p *process) scrape() (int, string) {
	return get(fmt.Sprintf("http://127.0.0.1:%d/metrics", p.metrics))
}

func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// wait returns how the process ended.
func (p *process) wait() error {
	select {
	case err := <-p.exited:
		p.exited <- err // stop may ask again
		return err
	case <-time.After(patience):
		return errors.New("the webhook does not end")
	}
}

func (p *process) stop() error {
	if p.cmd == nil {
		return nil
	}
	defer p.log.Close()
	if err := p.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := p.wait(); err != nil {
		return errors.Join(err, p.cmd.Process.Kill())
	}
	return nil
}

// tail is the end of the log, for messages.
func (p *process) tail() string {
	content, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(content)), "\n"), func(line string) bool {
		return strings.Contains(line, "healthz check failed") // our own polling
	})
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
