// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/record"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// TestEventsOfOthers: what `kubectl describe pod` shows of other limiters and of disturbed hooks.
func TestEventsOfOthers(t *testing.T) {
	recorder := record.NewFakeRecorder(10)
	e := &events{recorder: recorder, known: map[string]told{}}
	pod := pods.Pod{Pod: datapath.Pod{Namespace: "team-a", Name: "web", UID: "uid-web"}}
	verdict := enforcer.Verdict{Pod: pod.Pod, Limit: 10 * bandwidth.Megabit, Devices: []datapath.Device{{Name: "veth1"}}}
	plugin := "the CNI bandwidth plugin limits what the pod sends (tbf on bwp1, to which veth1 redirects)"

	stoodDown, tookOver, ours := verdict, verdict, verdict
	stoodDown.Code, stoodDown.Reason = enforcer.CodeOtherLimiter, "another limiter is in charge: "+plugin
	tookOver.Enforced, tookOver.Code, tookOver.Reason = true, enforcer.CodePolicing, plugin+" as well"
	ours.Enforced, ours.Code = true, enforcer.CodePolicing
	e.Changed(pod, ours) // as it should be from the start: no news
	e.Changed(pod, stoodDown)
	e.Changed(pod, tookOver)
	e.Changed(pod, ours)
	e.Repaired(pod, datapath.Repair{Pod: pod.Pod, Device: 7, Cause: datapath.CauseRemoved})
	e.Repaired(pod, datapath.Repair{Pod: pod.Pod, Device: 7, Cause: datapath.CauseHidden, By: `program "cil_from_container" (id 9)`})
	close(recorder.Events)
	var got []string
	for text := range recorder.Events {
		got = append(got, text)
	}
	want := []string{
		"Warning EgressNotEnforced another limiter is in charge: " + plugin,
		"Normal EgressEnforced egress limit 10M on veth1 by policing; " + plugin + " as well",
		"Normal EgressEnforced egress limit 10M on veth1 by policing",
		"Warning EgressDisturbed the egress limit was not enforced for a moment: somebody removed kubepace's program; it is attached again",
		`Warning EgressDisturbed the egress limit was not enforced for a moment: program "cil_from_container" (id 9) was put before kubepace's program, which runs first again`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
