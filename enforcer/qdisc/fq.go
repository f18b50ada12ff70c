// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// PodPacketBound is the most packets of one pod that may be parked in fq at a time (a GSO packet counts once).
	// The datapath must drop beyond it: fq's limits below follow from it.
	PodPacketBound = 4096
	// maxPods is what the limit is laid out for; the kubelet's own default is 110.
	maxPods = 250
)

// Parameters of our fq. What is not listed keeps the kernel's default; above all the horizon of 10 s, which is far
// above ours (a packet stamped beyond it would be dropped silently), and the quantum.
const (
	// fqLimit (packets in the whole qdisc) is shared by all: were it below the sum of the pods' bounds, limited
	// pods could fill it, and unlimited ones lose packets for it. It is a bound, not an allocation.
	fqLimit = 1 << 20
	// fqFlowLimit (packets of one flow): all that a pod has parked may be one flow. The default of 100 drops paced
	// packets. Twice the bound, as two pods' flows may share a hash.
	fqFlowLimit = 2 * PodPacketBound
	// fqOrphanMask: forwarded packets have no socket and are hashed into mask+1 flows; the default of 1024 makes an
	// unlimited pod's packet wait behind a stranger's paced one.
	fqOrphanMask = 1<<20 - 1
	// exitBuckets and vethBuckets are log2 of the number of hash buckets, 8 bytes each. A bucket is a tree, so that
	// too few cost a few comparisons. A veth leads to one pod.
	exitBuckets = 12
	vethBuckets = 6
)

// fqLimit must hold every pod's bound, with room for those without a limit.
const _ = uint(fqLimit - maxPods*PodPacketBound)

// MissingError means that the running kernel lacks a feature.
type MissingError struct {
	Option string // of the kernel's configuration, and the module in brackets
}

func (e *MissingError) Error() string { return "needs " + e.Option }

var errNoFq = &MissingError{Option: "CONFIG_NET_SCH_FQ (sch_fq)"}

// fqOptions is the content of TCA_OPTIONS. The netlink package's Fq type cannot set orphan_mask, and sets
// rate_enable to 0 unless told.
func fqOptions(buckets uint32) []byte {
	var options []byte
	for _, a := range fqAttributes(buckets) {
		options = append(options, nl.NewRtAttr(a.kind, nl.Uint32Attr(a.value)).Serialize()...)
	}
	return options
}

type fqAttribute struct {
	kind  int
	value uint32
}

func fqAttributes(buckets uint32) []fqAttribute {
	return []fqAttribute{
		{nl.TCA_FQ_PLIMIT, fqLimit},
		{nl.TCA_FQ_FLOW_PLIMIT, fqFlowLimit},
		{nl.TCA_FQ_BUCKETS_LOG, buckets},
		{nl.TCA_FQ_ORPHAN_MASK, fqOrphanMask},
	}
}

// isOurFq reports whether e is fq with the parameters that we set.
func isOurFq(e entry, buckets uint32) bool {
	if e.Kind != "fq" {
		return false
	}
	attrs, err := nl.ParseRouteAttr(e.Options)
	if err != nil {
		return false
	}
	have := map[int]uint32{}
	for _, a := range attrs {
		if len(a.Value) == 4 {
			have[int(a.Attr.Type&nl.NLA_TYPE_MASK)] = binary.NativeEndian.Uint32(a.Value)
		}
	}
	for _, want := range fqAttributes(buckets) {
		if got, ok := have[want.kind]; !ok || got != want.value {
			return false
		}
	}
	return true
}

// Probe reports whether the kernel has fq: nil, a *MissingError, or why it cannot tell. It tries it on the loopback
// device of a network namespace that nobody else sees. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
func Probe() error {
	result := make(chan error)
	go func() { result <- probeThread() }()
	return <-result
}

func probeThread() error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("probe fq: open network namespace: %w", err)
	}
	defer before.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("probe fq: make network namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go back stays locked, and ends with this goroutine.
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
	}()
	c, err := dial(netns.None())
	if err != nil {
		return fmt.Errorf("probe fq: %w", err)
	}
	defer c.Close()
	const loopback = 1 // in every network namespace
	err = c.put(entry{Index: loopback, Kind: "fq", Parent: netlink.HANDLE_ROOT, Options: fqOptions(vethBuckets)})
	if errors.Is(err, unix.ENOENT) {
		return errNoFq
	}
	if err != nil {
		return fmt.Errorf("probe fq: %w", err)
	}
	return nil
}
