// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// LacksError means that the running kernel lacks something without which no limit can be kept at all.
type LacksError struct {
	Kernel string // release, as in uname -r
	What   string // such as "bpf(2), CONFIG_BPF_SYSCALL"
	Err    error  // what failed for the lack of it
}

func (e *LacksError) Error() string {
	return fmt.Sprintf("kernel %s lacks %s: %v", e.Kernel, e.What, e.Err)
}

func (e *LacksError) Unwrap() error { return e.Err }

// needs are the abilities of the kernel without which the program cannot work, in the order in which they build on one
// another.
var needs = []struct {
	what  string
	probe func() error
}{
	{"bpf(2) (CONFIG_BPF_SYSCALL)", func() error { return features.HaveMapType(ebpf.Array) }},
	{"eBPF maps of maps (Linux 4.12)", func() error { return features.HaveMapType(ebpf.ArrayOfMaps) }},
	{"eBPF programs for tc (CONFIG_NET_CLS_ACT)", func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
}

// explain looks, after a failure, for what the kernel lacks; where it lacks nothing that we know of, the error stays
// what it is. Being refused is not lacking.
func explain(err error) error {
	if err == nil || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return err
	}
	release, _ := kernelRelease()
	if errors.Is(err, unix.ENOSYS) {
		return &LacksError{Kernel: release, What: needs[0].what, Err: err}
	}
	for _, n := range needs {
		if probed := n.probe(); errors.Is(probed, ebpf.ErrNotSupported) || errors.Is(probed, unix.ENOSYS) {
			return &LacksError{Kernel: release, What: n.what, Err: err}
		}
	}
	return err
}

// lacksKind tells an answer that the kernel gives of a kind of qdisc that it does not know.
func lacksKind(err error, what string) error {
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	release, _ := kernelRelease()
	return &LacksError{Kernel: release, What: what, Err: err}
}
