// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// Held is what the agent holds, of the kernel and of its own.
type Held struct {
	Pins       int            `json:"pins"`
	Links      int            `json:"pinned_links"` // tcx links, one for each device
	Entries    map[string]int `json:"map_entries"`  // of the pinned maps that grow with pods; flow tables are entries of kubepace_flows
	FDs        int            `json:"fds"`
	Goroutines int            `json:"goroutines"`
	Memory     Memory         `json:"memory"`
	// Of the whole machine, by kubepace's names: other agents' are counted as well.
	Maps     int `json:"bpf_maps_on_this_machine"`
	Programs int `json:"bpf_programs_on_this_machine"`
}

// layout is the folder with the agent's pins.
func (w *world) layout() (string, error) {
	found, err := filepath.Glob(filepath.Join(w.bpffs(), "layout-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("pins under %s: %v, %w", w.bpffs(), found, err)
	}
	return found[0], nil
}

// held counts a few times and takes the least of what comes and goes, such as the connection that reads the metrics.
func (a *agent) held(ctx context.Context) (h *Held, err error) {
	for range 5 {
		now, err := a.count()
		if err != nil {
			return nil, err
		}
		if h != nil {
			now.FDs, now.Goroutines = min(h.FDs, now.FDs), min(h.Goroutines, now.Goroutines)
		}
		h = now
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (a *agent) count() (*Held, error) {
	h := &Held{Entries: map[string]int{}}
	layout, err := a.w.layout()
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(layout, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || entry.IsDir():
			return err
		case filepath.Base(filepath.Dir(path)) == "links":
			h.Links++
		case strings.HasPrefix(entry.Name(), "kubepace_"):
			if err := h.entries(entry.Name(), path); err != nil {
				return err
			}
		}
		h.Pins++
		return nil
	})
	if err != nil {
		return nil, err
	}
	if h.FDs, err = a.fds(); err != nil {
		return nil, err
	}
	if h.Memory, err = a.memory(); err != nil {
		return nil, err
	}
	text, err := a.metrics()
	if err != nil {
		return nil, err
	}
	goroutines, err := gauge(text, "go_goroutines")
	h.Goroutines = int(goroutines)
	h.machine()
	return h, err
}

// entries counts a pinned map's, where their number depends on the pods.
func (h *Held) entries(name, path string) error {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer m.Close()
	if m.Type() == ebpf.Array {
		return nil
	}
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		h.Entries[name]++
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	return nil
}

// machine counts maps and programs wherever they come from.
func (h *Held) machine() {
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, openErr := ebpf.NewMapFromID(id)
		if openErr != nil {
			continue
		}
		if info, err := m.Info(); err == nil && strings.HasPrefix(info.Name, "kubepace") {
			h.Maps++
		}
		m.Close()
	}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, openErr := ebpf.NewProgramFromID(id)
		if openErr != nil {
			continue
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "kubepace") {
			h.Programs++
		}
		p.Close()
	}
}

// leaks says what is held more than before; nothing that is counted exactly may be.
func (h *Held) leaks(before *Held) []string {
	var list []string
	more := func(what string, before, after int) {
		if after > before {
			list = append(list, fmt.Sprintf("%s %d → %d", what, before, after))
		}
	}
	more("pins", before.Pins, h.Pins)
	more("tcx links", before.Links, h.Links)
	for _, name := range slices.Sorted(maps.Keys(h.Entries)) {
		more("entries of "+name, before.Entries[name], h.Entries[name])
	}
	more("file descriptors", before.FDs, h.FDs)
	more("goroutines", before.Goroutines, h.Goroutines)
	return list
}

// pinned reports whether a device has a pinned link: on kernels without tcx nothing has.
func pinned(layout string, ifindex int) bool {
	_, err := os.Stat(filepath.Join(layout, "links", fmt.Sprint(ifindex)))
	return err == nil
}
