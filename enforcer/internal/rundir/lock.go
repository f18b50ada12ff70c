// SPDX-License-Identifier: Apache-2.0

package rundir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const lockName = "agent.lock"

// ErrLocked means that an agent is running with this run folder.
var ErrLocked = errors.New("another agent holds the run folder")

// Lock marks the folder as an agent's own until the returned file is closed or the process dies, however it dies.
func Lock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make run folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock run folder: %w", err)
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock run folder %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Locked reports whether an agent is running with this run folder.
func Locked(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a running agent: %w", err)
	}
	defer f.Close()
	// Shared: two people asking at once do not take each other for an agent.
	if err := flock(f, unix.LOCK_SH); errors.Is(err, ErrLocked) {
		return true, nil
	} else if err != nil {
		return false, fmt.Errorf("look for a running agent: %w", err)
	}
	return false, nil
}

func flock(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}
