// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Controllers is a running kube-controller-manager: envtest brings none, and nobody else counts a ResourceQuota.
type Controllers struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// LackingControllers says why there is no kube-controller-manager; empty where there is one.
func LackingControllers() string {
	if _, err := exec.LookPath(controllerManager()); err != nil {
		return err.Error() + ": see tests/kube/build.sh"
	}
	return ""
}

func controllerManager() string {
	return filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kube-controller-manager")
}

// StartControllers runs these controllers, such as "resourcequota-controller". A quota's recount keeps its default of 5
// minutes: one every second counts from caches that lag behind a burst of creates, and then lets more in (seen: 1,002 pods
// into room for 1,000).
func (c *Cluster) StartControllers(names ...string) (*Controllers, error) {
	kubeconfig := filepath.Join(c.dir, "controllers.kubeconfig")
	if err := os.WriteFile(kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(c.dir, "controllers.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"--kubeconfig=" + kubeconfig, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=500", "--kube-api-burst=1000"}
	for _, name := range names {
		args = append(args, "--controllers="+name)
	}
	m := &Controllers{cmd: exec.Command(controllerManager(), args...), exited: make(chan struct{})}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start kube-controller-manager: %w", err)
	}
	go func() {
		_ = m.cmd.Wait() // how it ended is in the log
		close(m.exited)
	}()
	return m, nil
}

// Stop ends the process.
func (m *Controllers) Stop() error {
	if err := m.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("stop kube-controller-manager: %w", err)
	}
	select {
	case <-m.exited: // killed, as it says
		return nil
	case <-time.After(patience):
		return fmt.Errorf("kube-controller-manager does not end")
	}
}
