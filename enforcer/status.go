// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"path/filepath"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/internal/rundir"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// DefaultRunDir is where the agent keeps its status, its lock, and the record of former qdiscs.
const DefaultRunDir = rundir.Default

// Identity tells which agent wrote a status.
type Identity struct {
	Version string    `json:"version"`
	Node    string    `json:"node,omitempty"`
	Source  string    `json:"source"` // where pods come from
	Started time.Time `json:"started"`
}

// Verdict is what holds for one pod that wants a limit.
type Verdict struct {
	datapath.Pod
	Origin pods.Origin `json:"origin"`
	// Enforced means that all that the pod sends is held to Limit. False always comes with a Reason.
	Enforced bool              `json:"enforced"`
	Limit    bandwidth.Rate    `json:"limit_bps"`
	Mode     datapath.Mode     `json:"-"` // of the kernel's state only: it may have changed since
	Devices  []datapath.Device `json:"devices,omitempty"`
	// Code is why, in one word. It is never empty.
	Code   Code   `json:"code"`
	Reason string `json:"reason,omitempty"` // the same for people; empty where a limit is enforced and nothing is to be added
}

// Status is what the agent knows and the kernel does not: above all why a pod's limit is not enforced. It is in a file
// so that it can be read while the agent is down.
type Status struct {
	Identity
	Updated    time.Time      `json:"updated"`
	Mode       string         `json:"mode"`
	ModeReason string         `json:"mode_reason"`
	Exits      []qdisc.Device `json:"exit_devices"`
	Veths      []qdisc.Device `json:"pod_devices_without_fq,omitempty"`
	Synced     bool           `json:"synced"` // the source of pods is complete
	Problems   []string       `json:"problems,omitempty"`
	Pods       []Verdict      `json:"pods"` // limited pods, sorted by namespace and name
}

// StatusPath is the status file in a run folder.
func StatusPath(runDir string) string { return filepath.Join(runDir, "status.json") }

// ReadStatus reads the status that the latest agent left. Where there is none the error wraps os.ErrNotExist.
func ReadStatus(runDir string) (Status, error) {
	var s Status
	err := rundir.ReadJSON(StatusPath(runDir), &s)
	return s, err
}

// Running reports whether an agent runs with this run folder, however the last one ended.
func Running(runDir string) (bool, error) { return rundir.Locked(runDir) }
