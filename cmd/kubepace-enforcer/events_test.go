// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"k8s.io/client-go/tools/record"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// TestEvents: a pod that is limited as it should be from the start is no news, and everything else is, once.
func TestEvents(t *testing.T) {
	recorder := record.NewFakeRecorder(1)
	e := &events{recorder: recorder, known: map[string]told{}}
	pod := pods.Pod{Pod: datapath.Pod{Namespace: "team-a", Name: "web", UID: "1"}}
	held := func(limit string, mode datapath.Mode) enforcer.Verdict {
		return enforcer.Verdict{Pod: pod.Pod, Enforced: true, Limit: bandwidth.MustParse(limit), Mode: mode, Devices: []datapath.Device{{Name: "veth1"}}}
	}
	lost := enforcer.Verdict{Pod: pod.Pod, Limit: bandwidth.MustParse("10M"), Code: enforcer.CodeNoHostDevice, Reason: "no host veth"}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"from the start", func() { e.Changed(pod, held("10M", datapath.ModePacing)) }, ""},
		{"limit", func() { e.Changed(pod, held("20M", datapath.ModePacing)) }, "Normal EgressEnforced egress limit 20M on veth1 by pacing; local delivery policed"},
		{"mode", func() { e.Changed(pod, held("20M", datapath.ModePolicing)) }, "Normal EgressEnforced egress limit 20M on veth1 by policing"},
		{"lost", func() { e.Changed(pod, lost) }, "Warning EgressNotEnforced no host veth"},
		{"found", func() { e.Changed(pod, held("20M", datapath.ModePolicing)) }, "Normal EgressEnforced egress limit 20M on veth1 by policing"},
		{"another device", func() { e.Changed(pod, held("20M", datapath.ModePolicing)) }, ""},
		{"released", func() { e.Released(pod) }, "Normal EgressUnlimited the pod has no egress limit any more"},
		{"released again", func() { e.Released(pod) }, ""},
	} {
		step.do()
		got := ""
		select {
		case got = <-recorder.Events:
		default:
		}
		if got != step.want {
			t.Errorf("%s: event %q; want %q", step.name, got, step.want)
		}
	}
}
