// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Probe asks the running kernel what it can do. It needs CAP_BPF and CAP_NET_ADMIN.
func Probe() (Features, error) {
	release, err := kernelRelease()
	if err != nil {
		return Features{}, err
	}
	f := Features{Kernel: release}
	// Kernels before 5.11 charge programs and maps to RLIMIT_MEMLOCK, which pinned ones may have used up.
	if err := rlimit.RemoveMemlock(); err != nil {
		return f, fmt.Errorf("lift RLIMIT_MEMLOCK: %w", err)
	}
	f.Stamp, err = supported(features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkbSetTstamp))
	if err != nil {
		return f, fmt.Errorf("probe bpf_skb_set_tstamp: %w", err)
	}
	f.TCX, err = probeTCX()
	if err != nil {
		return f, fmt.Errorf("probe tcx: %w", err)
	}
	return f, nil
}

func supported(err error) (bool, error) {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return false, nil
	}
	return err == nil, err
}

// probeTCX attaches to a device that cannot exist: a kernel with tcx looks for the device, others refuse the type.
func probeTCX() (bool, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return false, fmt.Errorf("load an empty tc program: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1 << 30, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		l.Close()
		return true, nil
	}
	if errors.Is(err, unix.ENODEV) {
		return true, nil
	}
	return supported(err)
}

func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
