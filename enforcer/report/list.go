// SPDX-License-Identifier: Apache-2.0

// Package report shows people and scripts what the enforcer does: it reads the kernel's state and the status that the
// agent leaves, and needs no running agent.
package report

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/sysctl"
)

// ModeNone stands where no limit is enforced.
const ModeNone = "none"

// Row is one limited pod. The JSON names are for scripts and do not change.
type Row struct {
	datapath.Pod
	Devices []datapath.Device `json:"devices"` // hook "" means: not attached
	Limit   string            `json:"limit"`   // canonical, such as "10M"; empty where it is unreadable
	// LimitBPS is in force, or where Enforced is false and Mode is "none", wanted.
	LimitBPS int64  `json:"limit_bps"`
	Mode     string `json:"mode"` // "pacing", "policing" or "none"
	Enforced bool   `json:"enforced"`
	// RateBPS is what was admitted between two readings, on the wire.
	RateBPS   int64             `json:"rate_bps"`
	BacklogMs float64           `json:"backlog_ms"`
	HorizonMs float64           `json:"horizon_ms"`
	Counters  datapath.Counters `json:"counters"`
	// Held: the kernel has state of this pod, and Counters are its own.
	Held   bool   `json:"-"`
	Reason string `json:"reason,omitempty"` // why it is not enforced, or only in part
	// Code is the agent's word for how the limit stands, such as "Pacing" or "HostNetwork"; where the kernel says
	// otherwise it is "NotAttached". Empty where no agent knows the pod.
	Code enforcer.Code `json:"code,omitempty"`
}

// List is what ListPods found.
type List struct {
	Rows         []Row // sorted by namespace and name, never nil
	AgentRunning bool
}

// Source is where the reports come from; Kernel is the real one.
type Source struct {
	Read    func() ([]datapath.State, error) // wraps os.ErrNotExist where nothing is pinned
	Status  func() (enforcer.Status, error)  // wraps os.ErrNotExist where no agent ever ran
	Running func() (bool, error)
	Now     func() time.Time
	// Sysctls are those that the agent changed; nil for none.
	Sysctls func() ([]sysctl.Change, error)
}

// Kernel reads the pins under bpffs and the agent's status in runDir.
func Kernel(bpffs, runDir string) Source {
	return Source{
		Read:    func() ([]datapath.State, error) { return datapath.Read(bpffs) },
		Status:  func() (enforcer.Status, error) { return enforcer.ReadStatus(runDir) },
		Running: func() (bool, error) { return enforcer.Running(runDir) },
		Now:     time.Now,
		Sysctls: sysctl.New(runDir, "").Changes,
	}
}

// ListPods reads the kernel's state twice, interval apart, so that it can tell rates; an interval of zero or less
// reads once. Pods that want a limit and have none come from the agent's status.
func ListPods(ctx context.Context, s Source, interval time.Duration) (List, error) {
	before, err := s.read()
	if err != nil {
		return List{}, err
	}
	start, after, elapsed := s.Now(), before, time.Duration(0)
	if interval > 0 && len(before) > 0 {
		select {
		case <-ctx.Done():
			return List{}, ctx.Err()
		case <-time.After(interval):
		}
		if after, err = s.read(); err != nil {
			return List{}, err
		}
		elapsed = s.Now().Sub(start)
	}
	status, err := s.Status()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return List{}, err
	}
	running, err := s.Running()
	if err != nil {
		return List{}, err
	}
	return List{Rows: rows(before, after, elapsed, status), AgentRunning: running}, nil
}

// read takes nothing pinned for no pods.
func (s Source) read() ([]datapath.State, error) {
	states, err := s.Read()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return states, err
}

// CodeNotAttached is what the kernel knows better than any agent: a limit is there, and on some device of the pod
// nothing that keeps it.
const CodeNotAttached enforcer.Code = "NotAttached"

// Rows are the limited pods of one reading, sorted by namespace and name, without rates.
func Rows(states []datapath.State, status enforcer.Status) []Row { return rows(nil, states, 0, status) }

func rows(before, after []datapath.State, elapsed time.Duration, status enforcer.Status) []Row {
	then := map[string]datapath.Counters{}
	for _, s := range before {
		then[s.Pod.UID] = s.Counters
	}
	verdicts := map[string]enforcer.Verdict{}
	for _, v := range status.Pods {
		verdicts[v.UID] = v
	}
	list := []Row{}
	for _, s := range after {
		r := fromKernel(s, verdicts[s.Pod.UID])
		if c, ok := then[s.Pod.UID]; ok && elapsed > 0 && s.Counters.Bytes > c.Bytes {
			r.RateBPS = int64(float64(s.Counters.Bytes-c.Bytes) * 8 / elapsed.Seconds())
		}
		list = append(list, r)
		delete(verdicts, s.Pod.UID)
	}
	for _, v := range verdicts {
		list = append(list, fromVerdict(v))
	}
	slices.SortFunc(list, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return list
}

// fromKernel believes the kernel in everything but the reason.
func fromKernel(s datapath.State, v enforcer.Verdict) Row {
	r := Row{
		Pod: s.Pod, Devices: s.Devices, LimitBPS: s.Rate.BitsPerSecond(), Mode: s.Mode.String(), Enforced: len(s.Devices) > 0,
		BacklogMs: milliseconds(s.Backlog), HorizonMs: milliseconds(s.Horizon), Counters: s.Counters, Reason: v.Reason, Code: v.Code, Held: true,
	}
	if r.Devices == nil {
		r.Devices = []datapath.Device{}
	}
	attached := 0
	for _, d := range s.Devices {
		if d.Hook != datapath.HookNone {
			attached++
		}
	}
	if attached < len(s.Devices) || attached == 0 {
		r.Code = CodeNotAttached
	}
	switch {
	case s.Rate == 0:
		r.Enforced, r.Mode, r.Reason = false, ModeNone, cmp.Or(r.Reason, "no limit is set")
		return r
	case attached == 0:
		r.Enforced, r.Mode, r.Reason = false, ModeNone, cmp.Or(r.Reason, "attached to no device")
	case attached < len(s.Devices):
		r.Enforced, r.Reason = false, cmp.Or(r.Reason, "not attached to all devices")
	case v.UID != "" && !v.Enforced:
		r.Enforced = false
	}
	r.Limit = s.Rate.String()
	return r
}

func fromVerdict(v enforcer.Verdict) Row {
	r := Row{Pod: v.Pod, Devices: []datapath.Device{}, LimitBPS: v.Limit.BitsPerSecond(), Mode: ModeNone, Reason: v.Reason, Code: v.Code}
	if v.Limit != 0 {
		r.Limit = v.Limit.String()
	}
	if v.Enforced {
		r.Reason, r.Code = "the agent had enforced it, and the kernel holds nothing", CodeNotAttached
	}
	return r
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
