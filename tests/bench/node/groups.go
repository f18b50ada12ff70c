// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// group is a control group of this program, for the processor only.
type group struct {
	dir   string
	moved map[int]string // processes and the group that each came from
}

// hierarchy is where control groups of the processor are: of version 2, or of version 1.
func hierarchy() (root, controller string) {
	const unified = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(unified, "cgroup.controllers")); err == nil {
		return unified, ""
	}
	return filepath.Join(unified, "cpu"), "cpu"
}

// newGroup makes one whose weight is so many shares; 1024 are one processor's, as in a pod's requests.
func newGroup(name string, shares int) (*group, error) {
	root, controller := hierarchy()
	g := &group{dir: filepath.Join(root, name), moved: map[int]string{}}
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	file, weight := "cpu.shares", shares
	if controller == "" { // as the kubelet converts them
		file, weight = "cpu.weight", 1+(shares-2)*9999/262142
	}
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.Itoa(weight)), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("give control group its weight: %w", err), os.Remove(g.dir))
	}
	return g, nil
}

// take moves a process in; children that it has from then on are in the group as well.
func (g *group) take(pid int) error {
	from, err := groupOf(pid)
	if err != nil {
		return err
	}
	g.moved[pid] = from
	return enter(g.dir, pid)
}

func enter(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return fmt.Errorf("move process to control group: %w", err)
	}
	return nil
}

// groupOf is the folder of the process's group.
func groupOf(pid int) (string, error) {
	root, controller := hierarchy()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == controller {
			return filepath.Join(root, f[2]), nil
		}
	}
	return "", fmt.Errorf("process %d has no control group of the processor", pid)
}

// end moves all back and removes the group.
func (g *group) end() error {
	var errs []error
	for pid, from := range g.moved {
		errs = append(errs, enter(from, pid))
	}
	return errors.Join(append(errs, os.Remove(g.dir))...)
}

// asOnNode runs do while the agent and this program, whose children the CNI plugins are, share the processors as a pod and the
// container runtime do on a kubelet's node: the pods' group has a weight of all processors, the system's that of one. Where
// there are no control groups to be had, it says so, returns false and runs do as it is.
func asOnNode(agent int, do func() error) (grouped bool, err error) {
	for _, g := range []struct {
		name   string
		shares int
		pid    int
	}{{"kubepace-bench-pods", 1024 * runtime.NumCPU(), agent}, {"kubepace-bench-system", 1024, os.Getpid()}} {
		made, failed := newGroup(g.name, g.shares)
		if made != nil {
			defer func() { err = errors.Join(err, made.end()) }()
			failed = made.take(g.pid)
		}
		if failed != nil {
			say("  without control groups: %v", failed)
			return false, do()
		}
	}
	return true, do()
}
