// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// progQuery is bpf(2)'s attr of BPF_PROG_QUERY, as 64-bit machines have it.
type progQuery struct {
	ifindex    uint32
	attachType uint32
	_          [2]uint32
	programs   unsafe.Pointer
	count      uint32
	_          uint32
	_          [3]uint64 // attach flags, link ids, link attach flags
	_          uint64    // revision
}

// firstByTCX is the program that sees a device's packets first at the tcx hook, 0 for none. The library's query asks
// twice and makes lists: with 250 devices, looked at twice a second, that was ten times the processor time of all else
// that the agent does at rest.
func firstByTCX(ifindex int) (ebpf.ProgramID, error) {
	var first uint32
	query := progQuery{ifindex: uint32(ifindex), attachType: unix.BPF_TCX_INGRESS, programs: unsafe.Pointer(&first), count: 1} //nolint:gosec // the kernel writes one id there
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query))      //nolint:gosec // the only way into bpf(2)
	// ENOSPC: there are more programs than the one that was asked for.
	if errno != 0 && !errors.Is(errno, unix.ENOSPC) {
		return 0, fmt.Errorf("query programs of device %d: %w", ifindex, errno)
	}
	return ebpf.ProgramID(first), nil
}
