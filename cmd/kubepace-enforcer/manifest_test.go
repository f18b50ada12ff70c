// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestDaemonSet holds the manifest against this program: its arguments are flags that exist, and every folder that it
// writes to is mounted.
func TestDaemonSet(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "manifests", "base", "enforcer", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(data, &ds); err != nil {
		t.Fatal(err)
	}
	c := ds.Spec.Template.Spec.Containers[0]
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = strings.ReplaceAll(a, "$(NODE_NAME)", "node1")
	}
	o, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(o.BPFFS), o.RunDir, o.NetnsDir} {
		i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path })
		if i < 0 {
			t.Errorf("%s is not mounted", path)
		} else if path == o.NetnsDir && (c.VolumeMounts[i].MountPropagation == nil || *c.VolumeMounts[i].MountPropagation != corev1.MountPropagationHostToContainer) {
			t.Errorf("%s would not show new pods", path)
		}
	}
	if !ds.Spec.Template.Spec.HostNetwork || *c.SecurityContext.ReadOnlyRootFilesystem != true || c.SecurityContext.Privileged != nil {
		t.Error("want hostNetwork, a read-only root, and no privileged container")
	}
}
