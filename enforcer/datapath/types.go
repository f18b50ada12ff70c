// SPDX-License-Identifier: Apache-2.0

// Package datapath makes the kernel keep each pod's egress limit: it loads the eBPF program of package bpf, attaches
// it where a pod's packets enter the node (the ingress hook of the pod's host-side device), and keeps the limits in
// pinned maps. Everything that matters is kernel state under one bpffs folder, so limits stay in force while no
// agent runs, and Read sees them then.
package datapath

import (
	"cmp"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-logr/logr"

	"github.com/kubepace/kubepace/bandwidth"
)

// DefaultBPFFS is where the maps and links are pinned.
const DefaultBPFFS = "/sys/fs/bpf/kubepace"

// Mode is how the kernel keeps a pod's limit.
type Mode uint32

const (
	// ModePolicing drops what exceeds the limit by more than the horizon. Works on every kernel since 5.10.
	ModePolicing Mode = 0
	// ModePacing stamps each packet with its earliest departure time; an fq qdisc where the packet leaves holds it
	// until then. Needs Linux 5.18 and fq on the exit devices.
	ModePacing Mode = 1
)

func (m Mode) String() string {
	switch m {
	case ModePolicing:
		return "policing"
	case ModePacing:
		return "pacing"
	}
	return fmt.Sprintf("Mode(%d)", uint32(m))
}

// MarshalText makes JSON show the mode's name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Hook is where the program hangs on a device.
type Hook string

const (
	HookTCX    Hook = "tcx"    // Linux 6.6 and later
	HookClsact Hook = "clsact" // a filter of the clsact qdisc
	HookNone   Hook = ""       // not attached: nothing is enforced on this device
)

// Pod names a pod. UID is the key; Namespace and Name are for people.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"pod"`
	UID       string `json:"uid"`
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Compare orders by namespace, name and UID.
func (p Pod) Compare(o Pod) int {
	return cmp.Or(cmp.Compare(p.Namespace, o.Namespace), cmp.Compare(p.Name, o.Name), cmp.Compare(p.UID, o.UID))
}

// Device is a pod's host-side network device, in the network namespace of the agent.
type Device struct {
	Index int    `json:"ifindex"`
	Name  string `json:"name"`
	// Hook and Behind are set by Read and States only.
	Hook   Hook   `json:"hook"`
	Behind string `json:"behind,omitempty"` // what the kernel runs before our program; it may send packets past it
}

// Limit is the desired state of one pod. All of the pod's devices share one clock, so the limit is for their sum.
type Limit struct {
	Pod     Pod
	Devices []Device // at least one
	Rate    bandwidth.Rate
	Mode    Mode
}

// Counters count since the pod was first limited; they survive live changes and restarts of the agent.
type Counters struct {
	Packets      uint64 `json:"packets"`       // admitted, each segment of a GSO packet counted
	Bytes        uint64 `json:"bytes"`         // admitted wire bytes: link header to payload, every segment
	Delayed      uint64 `json:"delayed"`       // admitted with a departure time in the future
	Sparse       uint64 `json:"sparse"`        // admitted ahead of the pod's own backlog
	Marked       uint64 `json:"marked"`        // ECN congestion experienced
	Dropped      uint64 `json:"dropped"`       // packets refused over the horizon
	DroppedBytes uint64 `json:"dropped_bytes"` // wire bytes refused
}

// State is what the kernel holds for one pod.
type State struct {
	Limit
	Counters Counters
	Backlog  time.Duration // how far the pod's clock is ahead of now
	Horizon  time.Duration // backlog beyond which packets are dropped
}

// Options for Open.
type Options struct {
	BPFFS string // DefaultBPFFS if empty; created, and bpffs mounted at its parent, where missing
	Log   logr.Logger

	spec   func() (*ebpf.CollectionSpec, error) // the program; bpf.LoadEgress if nil
	clsact bool                                 // as on a kernel without tcx
}

// Features are the abilities of the running kernel that decide between pacing and policing.
type Features struct {
	Kernel string `json:"kernel"` // release, as in uname -r
	TCX    bool   `json:"tcx"`    // tcx links: Linux 6.6
	Stamp  bool   `json:"stamp"`  // bpf_skb_set_tstamp: Linux 5.18. Without it, only policing
}
