// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// pins knows where everything is pinned: DIR/LAYOUT/<map>, DIR/LAYOUT/program, DIR/LAYOUT/links/<ifindex>.
type pins struct{ root, layout string }

func (p pins) dir() string             { return filepath.Join(p.root, p.layout) }
func (p pins) file(name string) string { return filepath.Join(p.dir(), name) }
func (p pins) links() string           { return filepath.Join(p.dir(), "links") }
func (p pins) link(ifindex int) string { return filepath.Join(p.links(), strconv.Itoa(ifindex)) }
func (p pins) exist() bool             { _, err := os.Stat(p.file(pinProgram)); return err == nil }

const (
	pinProgram = "program"
	pinRodata  = "rodata"
)

// all are the layouts that have pins under the root; none where there is no root.
func (p pins) all() []pins {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return nil
	}
	var out []pins
	for _, entry := range entries {
		if entry.IsDir() {
			out = append(out, pins{p.root, entry.Name()})
		}
	}
	return out
}

// others are the complete ones of other layouts.
func (p pins) others() []pins {
	return slices.DeleteFunc(p.all(), func(other pins) bool { return other == p || !other.exist() })
}

// removeLayout deletes the pins of one layout.
func (p pins) removeLayout() error {
	if err := os.RemoveAll(p.dir()); err != nil {
		return fmt.Errorf("remove pins under %s: %w", p.dir(), err)
	}
	return nil
}

// create makes the folders, and mounts a bpffs where the parent folder is not one.
func (p pins) create() error {
	parent := filepath.Dir(p.root)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", parent, err)
	}
	ok, err := isBPFFS(parent)
	if err != nil {
		return err
	}
	if !ok {
		if err := unix.Mount("bpf", parent, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpf filesystem at %s: %w", parent, err)
		}
	}
	if err := os.MkdirAll(p.links(), 0o700); err != nil {
		return fmt.Errorf("create %s: %w", p.links(), err)
	}
	return nil
}

// remove deletes every pin. What the kernel still uses elsewhere lives on.
func (p pins) remove() error {
	if err := os.RemoveAll(p.root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pins under %s: %w", p.root, err)
	}
	return nil
}

func isBPFFS(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}
