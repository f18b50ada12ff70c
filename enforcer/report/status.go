// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/sysctl"
)

// Status is what holds on this node. The JSON names are for scripts and do not change.
type Status struct {
	Mode              string         `json:"mode"` // "pacing", "policing" or "unknown"
	ModeReason        string         `json:"mode_reason"`
	CongestionControl string         `json:"congestion_control"` // of the network namespace; pods have their own
	Exits             []qdisc.Device `json:"exit_devices"`
	Kernel            Kernels        `json:"kernel"`
	Agent             Agent          `json:"agent"`
	Pods              Pods           `json:"pods"`
	Pins              Pins           `json:"pins"`
	// Sysctls are what kubepace was asked to set; cleanup restores them.
	Sysctls  []sysctl.Change `json:"sysctls,omitempty"`
	Problems []string        `json:"problems"`
}

// Kernels is what the running kernel can do.
type Kernels struct {
	datapath.Features
	Fq       bool   `json:"fq"`
	FqReason string `json:"fq_reason,omitempty"`
	Error    string `json:"error,omitempty"` // of asking it
}

// Agent is the running or the last agent; all but Running is empty where there never was one.
type Agent struct {
	Running bool `json:"running"`
	enforcer.Identity
	Updated time.Time `json:"updated"` // when what it knows changed last
	Synced  bool      `json:"synced"`
}

// Pods counts limited pods.
type Pods struct {
	Limited     int      `json:"limited"`
	Enforced    int      `json:"enforced"`
	NotEnforced []Reason `json:"not_enforced"`
}

// Reason is why one pod's limit is not enforced, or not for all that it sends.
type Reason struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Reason    string `json:"reason"`
}

// Pins is what keeps limits in force without an agent.
type Pins struct {
	Path    string `json:"path"`
	Present bool   `json:"present"`
	Pods    int    `json:"pods"`
	Devices int    `json:"devices"`
}

// Node is where Inspect looks beyond Source; LocalNode is the real one.
type Node struct {
	Probe             func() (datapath.Features, error)
	Exits             func(names []string, podVeths []int) (qdisc.Result, error)
	CongestionControl func() (string, error)
}

// LocalNode looks at the network namespace of the calling thread.
func LocalNode() Node {
	return Node{Probe: datapath.Probe, Exits: inspectExits, CongestionControl: congestionControl}
}

func inspectExits(names []string, podVeths []int) (qdisc.Result, error) {
	m, err := qdisc.New(qdisc.Options{Exits: names})
	if err != nil {
		return qdisc.Result{}, err
	}
	defer m.Close()
	return m.Inspect(podVeths)
}

func congestionControl() (string, error) {
	data, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return strings.TrimSpace(string(data)), err
}

// Inspect gathers the status. exits names the exit devices; where it is empty, a running agent's choice is taken, and
// otherwise they are found by routes.
func Inspect(s Source, n Node, bpffs string, exits []string) (Status, error) {
	known, err := s.Status()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Status{}, err
	}
	running, err := s.Running()
	if err != nil {
		return Status{}, err
	}
	st := Status{
		Agent: Agent{Running: running, Identity: known.Identity, Updated: known.Updated, Synced: running && known.Synced},
		Pins:  Pins{Path: bpffs}, Problems: []string{}, Exits: []qdisc.Device{},
	}
	if running {
		st.Problems = append(st.Problems, known.Problems...)
	}
	veths := st.addPods(s, known)
	if len(exits) == 0 && running {
		for _, d := range known.Exits {
			exits = append(exits, d.Name)
		}
	}
	st.addNode(n, exits, veths)
	if s.Sysctls != nil {
		if st.Sysctls, err = s.Sysctls(); err != nil {
			st.problem("read the record of sysctls", err)
		}
	}
	return st, nil
}

// addPods returns the ifindexes of the pods' devices.
func (st *Status) addPods(s Source, known enforcer.Status) []int {
	states, err := s.Read()
	st.Pins.Present, st.Pins.Pods = err == nil, len(states)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		st.problem("read the kernel's state", err)
	}
	var veths []int
	for _, state := range states {
		st.Pins.Devices += len(state.Devices)
		for _, d := range state.Devices {
			veths = append(veths, d.Index)
		}
	}
	st.Pods.NotEnforced = []Reason{}
	for _, r := range rows(states, states, 0, known) {
		st.Pods.Limited++
		if r.Enforced {
			st.Pods.Enforced++
			continue
		}
		st.Pods.NotEnforced = append(st.Pods.NotEnforced, Reason{r.Namespace, r.Name, r.Reason})
	}
	return veths
}

func (st *Status) addNode(n Node, names []string, veths []int) {
	var err error
	if st.CongestionControl, err = n.CongestionControl(); err != nil {
		st.problem("read congestion control", err)
	}
	devices, exitsErr := n.Exits(names, veths)
	st.Exits = append(st.Exits, devices.Exits...)
	st.Kernel.Fq = devices.Fq == nil && exitsErr == nil
	if devices.Fq != nil {
		st.Kernel.FqReason = devices.Fq.Error()
	}
	if exitsErr != nil {
		st.problem("find exit devices", exitsErr)
	}
	features, err := n.Probe()
	if err != nil {
		st.Kernel.Error = err.Error()
		st.Mode, st.ModeReason = "unknown", "the kernel cannot be asked: "+err.Error()
		return
	}
	st.Kernel.Features = features
	mode, why := enforcer.DecideMode(features, devices, exitsErr)
	st.Mode, st.ModeReason = mode.String(), why
}

func (st *Status) problem(what string, err error) {
	st.Problems = append(st.Problems, fmt.Sprintf("%s: %v", what, err))
}
