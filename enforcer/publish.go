// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"reflect"
	"time"

	"github.com/kubepace/kubepace/enforcer/internal/rundir"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// logProblems logs each problem when it appears, and that it has gone.
func (e *Enforcer) logProblems(problems []error) {
	now := make(map[string]bool, len(problems))
	for _, err := range problems {
		now[err.Error()] = true
		if !e.problems[err.Error()] {
			e.opts.Log.Error(err, "problem")
		}
	}
	for text := range e.problems {
		if !now[text] {
			e.opts.Log.Info("problem is over", "problem", text)
		}
	}
	e.problems = now
}

// publish replaces the status, and the status file where anything but the time changed.
func (e *Enforcer) publish(snapshot pods.Snapshot, mode, why string, problems []error) {
	status := Status{
		Identity: e.opts.Identity, Mode: mode, ModeReason: why,
		Exits: e.exits.Exits, Veths: unpaced(e.exits.Veths), Synced: snapshot.Complete,
	}
	for _, err := range problems {
		status.Problems = append(status.Problems, err.Error())
	}
	for _, pod := range snapshot.Pods {
		if p := e.pods[pod.UID]; p != nil && pod.Limited() {
			status.Pods = append(status.Pods, p.verdict)
		}
	}
	e.mu.Lock()
	before := e.status
	before.Updated = time.Time{}
	changed := !reflect.DeepEqual(before, status)
	status.Updated, e.passed = e.now(), e.now()
	if !changed {
		status.Updated = e.status.Updated
	}
	if before.Mode != status.Mode || before.ModeReason != status.ModeReason {
		e.opts.Log.Info("mode decided", "mode", status.Mode, "reason", why)
	}
	e.status = status
	e.mu.Unlock()
	if !changed || e.opts.StatusFile == "" {
		return
	}
	if err := rundir.WriteJSON(e.opts.StatusFile, status); err != nil {
		e.opts.Log.Error(err, "status file not written")
	}
}

func unpaced(devices []qdisc.Device) []qdisc.Device {
	var list []qdisc.Device
	for _, d := range devices {
		if !d.Paced {
			list = append(list, d)
		}
	}
	return list
}
