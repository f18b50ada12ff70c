// SPDX-License-Identifier: Apache-2.0

// Package sysctl sets the one kernel setting that kubepace writes where it is asked to (--bbr), and puts back what was
// there. It remembers in the run folder, which ends with the kernel whose settings it describes.
package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/internal/rundir"
)

// CongestionControl is what sockets of the network namespace, and of namespaces made later, send by.
const CongestionControl = "net.ipv4.tcp_congestion_control"

// BBR is the value for --bbr.
const BBR = "bbr"

const recordName = "sysctls.json"

// Change is one setting that was changed.
type Change struct {
	Name   string `json:"name"`
	Before string `json:"before"`
	Set    string `json:"set"`
}

// Settings writes below root, /proc/sys for the network namespace of the calling thread.
type Settings struct {
	RunDir string
	root   string
}

// DefaultRoot holds the kernel's settings.
const DefaultRoot = "/proc/sys"

// New uses the record in a run folder, and settings below root; both may be empty for the defaults.
func New(runDir, root string) *Settings {
	if runDir == "" {
		runDir = rundir.Default
	}
	if root == "" {
		root = DefaultRoot
	}
	return &Settings{RunDir: runDir, root: root}
}

func (s *Settings) path(name string) string {
	return filepath.Join(s.root, strings.ReplaceAll(name, ".", "/"))
}

func (s *Settings) record() string { return filepath.Join(s.RunDir, recordName) }

func (s *Settings) read(name string) (string, error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(data)), nil
}

func (s *Settings) write(name, value string) error {
	// Never made where it is missing: the kernel makes these files.
	file, err := os.OpenFile(s.path(name), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = file.WriteString(value)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", name, explain(name, value, err))
	}
	return nil
}

// explain says what to do about it.
func explain(name, value string, err error) error {
	switch {
	case name == CongestionControl && errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel has no %s (CONFIG_TCP_CONG_%s, module tcp_%s): %w", value, strings.ToUpper(value), value, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("it is read-only here, as in a container; manifests/overlays/bbr mounts one that is not: %w", err)
	}
	return err
}

// Changes are the settings that Set changed and that were not restored yet; none where there is no record.
func (s *Settings) Changes() ([]Change, error) {
	var list []Change
	if err := rundir.ReadJSON(s.record(), &list); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return list, nil
}

// Set gives a setting a value. What was there is recorded first; where the value is there already nothing is done.
func (s *Settings) Set(name, value string) error {
	now, err := s.read(name)
	if err != nil || now == value {
		return err
	}
	list, err := s.Changes()
	if err != nil {
		return err
	}
	// What an earlier agent found is what to restore; what somebody set since is newer.
	list = without(list, name)
	if err := rundir.WriteJSON(s.record(), append(list, Change{Name: name, Before: now, Set: value})); err != nil {
		return err
	}
	if err := s.write(name, value); err != nil {
		return errors.Join(err, s.save(list))
	}
	return nil
}

// Restore puts back every recorded setting that still has the value that was set; what somebody changed since stays.
// It returns what it put back.
func (s *Settings) Restore() (restored []Change, err error) {
	list, err := s.Changes()
	if err != nil {
		return nil, err
	}
	var left []Change
	var errs []error
	for _, c := range list {
		now, err := s.read(c.Name)
		if err == nil && now == c.Set {
			if err = s.write(c.Name, c.Before); err == nil {
				restored = append(restored, c)
			}
		}
		if err != nil {
			left, errs = append(left, c), append(errs, err)
		}
	}
	return restored, errors.Join(append(errs, s.save(left))...)
}

// save leaves no file where nothing is to be remembered.
func (s *Settings) save(list []Change) error {
	if len(list) > 0 {
		return rundir.WriteJSON(s.record(), list)
	}
	if err := os.Remove(s.record()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of sysctls: %w", err)
	}
	return nil
}

func without(list []Change, name string) []Change {
	var out []Change
	for _, c := range list {
		if c.Name != name {
			out = append(out, c)
		}
	}
	return out
}
