// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"net/http"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

// Stopping drains; while the webhook is away only pods under a maximum are refused; a restart keeps the identity.
// The file's name makes it the last test: it takes the webhook away from the others.
func TestOutage(t *testing.T) {
	c := needCluster(t)
	plain := c.namespace(t)
	bounded := c.namespace(t, bandwidth.LabelMax, "50M")
	dry := c.namespace(t, bandwidth.LabelMax, "50M", bandwidth.LabelMode, "dry-run")
	before := secretData(t)

	if err := c.webhook.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "unreadiness", func() bool {
		code, err := c.webhook.Check("draining")
		return err == nil && code == http.StatusInternalServerError
	})
	requireLimits(t, mustCreate(t, bounded, pod("draining", egress, "1G")), egress, "50M", requested, "1G", source, "capped")
	if err := c.webhook.Wait(); err != nil {
		t.Fatalf("exit after SIGTERM: %v\n%s", err, c.webhook.Log())
	}

	requireLimits(t, mustCreate(t, plain, pod("outage", egress, "10000k")), egress, "10000k")
	requireLimits(t, mustCreate(t, dry, pod("outage", egress, "1G")), egress, "1G")
	mustCreate(t, bounded, onHost(pod("host")))
	mustCreate(t, "kube-system", pod("system"))
	mirror := pod("mirror", corev1.MirrorPodAnnotationKey, "x", egress, "10m")
	mirror.Spec.NodeName = "node"
	mustCreate(t, bounded, mirror)
	if _, _, err := create(t, bounded, pod("outage", egress, "1G")); err == nil {
		t.Error("a maximum is not kept while the webhook is away")
	}

	if err := c.webhook.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, secretData(t)); diff != "" {
		t.Error("the identity changed over a restart")
	}
	eventually(t, "calls to succeed again", func() bool {
		got, _, err := create(t, bounded, pod("back", egress, "1G"))
		return err == nil && got.Annotations[egress] == "50M"
	})
}
