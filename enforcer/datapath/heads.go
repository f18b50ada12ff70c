// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/kubepace/kubepace/bpf"
)

// heads asks the kernel, in one read for all, which devices have our program first at their tcx hook. A question for
// each of 250 devices, twice a second, was a quarter of what the agent takes at rest.
type heads struct {
	program *ebpf.Program
	iter    *link.Iter

	mu   sync.Mutex
	buf  []byte
	calm []byte // what was read when all was as it should be; nil before
}

// openHeads needs a kernel that has tcx and its own types (BTF).
func openHeads(program ebpf.ProgramID) (_ *heads, err error) {
	spec, err := bpf.LoadHooks()
	if err != nil {
		return nil, fmt.Errorf("read the hooks program: %w", err)
	}
	if err := spec.Variables[bpf.HooksVarProgramId].Set(uint32(program)); err != nil {
		return nil, fmt.Errorf("set program_id: %w", err)
	}
	var objects bpf.HooksPrograms
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, fmt.Errorf("load the hooks program: %w", err)
	}
	// Reading the kernel's types took megabytes that nothing needs any more.
	defer debug.FreeOSMemory()
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

// changed reports whether the devices are others than those of calmAt, and which they are if so.
func (h *heads) changed() (now named, changed bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.read()
	if err != nil || h.calm != nil && bytes.Equal(h.buf[:n], h.calm) {
		return nil, false, err
	}
	return append(named{}, h.buf[:n]...), true, nil
}

// calmAt keeps what changed returned: nothing was wrong with it.
func (h *heads) calmAt(now named) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calm = now
}

// names asks for the devices.
func (h *heads) names() (named, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.read()
	return append(named{}, h.buf[:n]...), err
}

// read fills the buffer, which grows as needed, and says with how much.
func (h *heads) read() (n int, err error) {
	r, err := h.iter.Open()
	if err != nil {
		return 0, fmt.Errorf("read hooks: %w", err)
	}
	defer r.Close()
	for {
		if n == len(h.buf) {
			h.buf = append(h.buf, make([]byte, len(h.buf))...)
		}
		more, err := r.Read(h.buf[n:])
		n += more
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read hooks: %w", err)
		}
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
