// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubepace/kubepace/tests/process"
)

// Replica is the webhook's binary on free loopback ports; it can be stopped and started again.
type Replica struct {
	*process.Process // nil before the first start
	Name             string
	Address          string // host:port of admission

	health, metrics string
	args            []string
	binary, logFile string
}

// NewReplica makes one with these flags, which win over the lab's; it does not run yet.
func (c *Cluster) NewReplica(name string, flags ...string) (*Replica, error) {
	r := &Replica{Name: name, binary: c.binary, logFile: filepath.Join(c.dir, name+".log")}
	for _, address := range []*string{&r.Address, &r.health, &r.metrics} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		*address = l.Addr().String()
	}
	_, port, err := net.SplitHostPort(r.Address)
	if err != nil {
		return nil, err
	}
	r.args = append([]string{
		"--kubeconfig=" + c.user, "--listen-address=127.0.0.1", "--port=" + port, "--health-address=" + r.health,
		"--metrics-address=" + r.metrics, "--extra-ips=" + ExtraIPs, "--replica-name=" + name,
	}, flags...)
	return r, nil
}

// URL is where the API server calls admission.
func (r *Replica) URL() string { return "https://" + r.Address }

// Start starts the process.
func (r *Replica) Start() (err error) {
	r.Process, err = process.Start("replica "+r.Name, r.logFile, nil, r.binary, r.args...)
	return err
}

// StartAgain starts the process unless it runs.
func (r *Replica) StartAgain() error {
	if r.Running() {
		return nil
	}
	return r.Start()
}

// Ready asks the process itself.
func (r *Replica) Ready() bool {
	code, _, err := r.get(r.health, "/readyz")
	return err == nil && code == http.StatusOK
}

// Check asks the process for one of the checks that readiness is made of.
func (r *Replica) Check(name string) (code int, err error) {
	code, _, err = r.get(r.health, "/readyz/"+name)
	return code, err
}

// WaitReady waits for readiness, but for no process that has ended.
func (r *Replica) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := r.Await(ctx, func(context.Context) error {
		if !r.Ready() {
			return errors.New("/readyz refuses")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, r.Log())
	}
	return nil
}

// Metrics is the text of /metrics.
func (r *Replica) Metrics() (string, error) {
	code, body, err := r.get(r.metrics, "/metrics")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d", code)
	}
	return body, err
}

func (r *Replica) get(address, path string) (int, string, error) {
	response, err := http.Get("http://" + address + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// Wait returns how the process ended.
func (r *Replica) Wait() error { return r.Process.Wait(patience) }

// Stop ends the process in order; it is no error if it has ended already.
func (r *Replica) Stop() error { return r.Process.Stop(patience) }

// Log is the end of the log, without our own polling.
func (r *Replica) Log() string {
	content, err := os.ReadFile(r.logFile)
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(content)), "\n"), func(line string) bool {
		return strings.Contains(line, "healthz check failed")
	})
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
