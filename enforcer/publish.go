// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"reflect"
	"slices"
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

// publish replaces the status, and where anything but the time changed the status file, now or soon.
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
	changed := !e.status.equal(status)
	now := e.now()
	status.Updated, e.passed = now, now
	if !changed {
		status.Updated = e.status.Updated
	}
	if e.status.Mode != status.Mode || e.status.ModeReason != status.ModeReason {
		e.opts.Log.Info("mode decided", "mode", status.Mode, "reason", why)
	}
	e.status = status
	e.mu.Unlock()
	e.unwritten = (e.unwritten || changed) && e.opts.StatusFile != ""
	if now.Sub(e.writtenAt) >= writeAtMost {
		e.write()
	}
}

// write brings the status file up to date.
func (e *Enforcer) write() {
	if !e.unwritten {
		return
	}
	e.unwritten, e.writtenAt = false, e.now()
	if err := rundir.WriteJSON(e.opts.StatusFile, e.Status()); err != nil {
		e.opts.Log.Error(err, "status file not written")
	}
}

// equal compares all but the time.
func (s Status) equal(o Status) bool {
	if !slices.EqualFunc(s.Pods, o.Pods, func(a, b Verdict) bool {
		return a.Pod == b.Pod && a.Origin == b.Origin && sameVerdict(a, b)
	}) {
		return false
	}
	s.Updated, s.Pods, o.Updated, o.Pods = time.Time{}, nil, time.Time{}, nil
	return reflect.DeepEqual(s, o)
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
