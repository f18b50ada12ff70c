// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/kubepace/kubepace/tests/process"
)

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

// StartControllers runs kube-controller-manager with these controllers, such as "resourcequota-controller": envtest brings
// none, and nobody else counts a ResourceQuota. A quota's recount keeps its default of 5
// minutes: one every second counts from caches that lag behind a burst of creates, and then lets more in (seen: 1,002 pods
// into room for 1,000).
func (c *Cluster) StartControllers(names ...string) (*process.Process, error) {
	kubeconfig := filepath.Join(c.dir, "controllers.kubeconfig")
	if err := os.WriteFile(kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		return nil, err
	}
	args := []string{"--kubeconfig=" + kubeconfig, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=500", "--kube-api-burst=1000"}
	for _, name := range names {
		args = append(args, "--controllers="+name)
	}
	return process.Start("kube-controller-manager", filepath.Join(c.dir, "controllers.log"), nil, controllerManager(), args...)
}
