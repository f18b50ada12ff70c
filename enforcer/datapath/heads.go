// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bpf"
)

// heads asks the kernel, in one read for all, which devices have our program first at their tcx hook. A question for
// each of 250 devices, twice a second, had been a quarter of what the agent takes at rest.
type heads struct {
	program *ebpf.Program
	iter    *link.Iter

	mu   sync.Mutex
	buf  []byte
	calm calm
}

// calm is a look at which nothing was wrong.
type calm struct {
	named   named
	changes uint64 // of the datapath, before it
}

// openHeads needs a kernel that has tcx and its own types (BTF).
func openHeads(program ebpf.ProgramID) (_ *heads, err error) {
	spec, err := bpf.LoadHooks()
	if err != nil {
		return nil, fmt.Errorf("read the hooks program: %w", err)
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	err = errors.Join(spec.Variables[bpf.HooksVarProgramId].Set(uint32(program)), spec.Variables[bpf.HooksVarNetnsInode].Set(uint32(ns.Ino)))
	if err != nil {
		return nil, fmt.Errorf("set program and namespace: %w", err)
	}
	// Reading the kernel's types takes megabytes that nothing needs afterwards.
	defer debug.FreeOSMemory()
	var objects bpf.HooksPrograms
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, fmt.Errorf("load the hooks program: %w", err)
	}
	h := &heads{program: objects.KubepaceHooks, buf: make([]byte, 4096)}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if h.iter, err = link.AttachIter(link.IterOptions{Program: h.program}); err != nil {
		return nil, fmt.Errorf("attach the hooks program: %w", err)
	}
	return h, nil
}

// named are devices, as the kernel names them: one ifindex after the other.
type named []byte

// set is empty for nil.
func (n named) set() map[int]bool {
	set := make(map[int]bool, len(n)/4)
	for ; len(n) >= 4; n = n[4:] {
		set[int(binary.NativeEndian.Uint32(n))] = true
	}
	return set
}

// isCalm reports whether the devices are those of the last calm look, and we changed nothing since: a device that came
// and was disturbed between two looks leaves them as they were.
func (h *heads) isCalm(now named, changes uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calm.changes == changes && bytes.Equal(h.calm.named, now)
}

// keepCalm: every device of ours was named.
func (h *heads) keepCalm(now named, changes uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calm = calm{now, changes}
}

// names asks for the devices.
func (h *heads) names() (named, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.read()
	return append(named{}, h.buf[:n]...), err
}

// iterCreate is bpf(2)'s attr of BPF_ITER_CREATE.
type iterCreate struct{ linkFD, flags uint32 }

// read fills the buffer, which grows as needed, and says with how much. Go's scheduler is not told of these system calls, none
// of which waits: for each that might, it wakes its monitor thread, which costs as much as the read.
func (h *heads) read() (n int, err error) {
	create := iterCreate{linkFD: uint32(h.iter.FD())}
	fd, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_ITER_CREATE, uintptr(unsafe.Pointer(&create)), unsafe.Sizeof(create)) //nolint:gosec // the only way into bpf(2)
	if errno != 0 {
		return 0, fmt.Errorf("read hooks: create iterator: %w", errno)
	}
	defer unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) //nolint:errcheck // of a descriptor that nobody else has
	for {
		if n == len(h.buf) {
			h.buf = append(h.buf, make([]byte, len(h.buf))...)
		}
		more, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&h.buf[n])), uintptr(len(h.buf)-n)) //nolint:gosec // read(2) into the rest of the buffer
		switch {
		case errno == unix.EINTR || errno == unix.EAGAIN: // the kernel stops after many links that are not ours
			continue
		case errno != 0:
			return 0, fmt.Errorf("read hooks: %w", errno)
		case more == 0:
			return n, nil
		}
		n += int(more)
	}
}

// Close lets go of the program; nothing of it stays in the kernel. A nil heads has none.
func (h *heads) Close() error {
	if h == nil {
		return nil
	}
	var err error
	if h.iter != nil {
		err = h.iter.Close()
	}
	return errors.Join(err, h.program.Close())
}
