// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// inFolder plays /proc/sys by a folder.
func inFolder(t *testing.T, value string) *Settings {
	t.Helper()
	s := New(filepath.Join(t.TempDir(), "run"), t.TempDir())
	path := s.path(CongestionControl)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, s, value)
	return s
}

func put(t *testing.T, s *Settings, value string) {
	t.Helper()
	if err := os.WriteFile(s.path(CongestionControl), []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s *Settings, value string, changes ...Change) {
	t.Helper()
	got, err := s.read(CongestionControl)
	if err != nil || got != value {
		t.Errorf("value %q, %v; want %q", got, err, value)
	}
	list, err := s.Changes()
	if diff := cmp.Diff(changes, list); diff != "" || err != nil {
		t.Errorf("changes: %v (-want +got):\n%s", err, diff)
	}
	if _, err := os.Stat(s.record()); (err == nil) != (len(changes) > 0) {
		t.Errorf("record: %v; want it there exactly while something is changed", err)
	}
}

func TestSetAndRestore(t *testing.T) {
	s := inFolder(t, "cubic")
	change := Change{CongestionControl, "cubic", BBR}
	for range 2 { // the second as an agent that starts again
		if err := s.Set(CongestionControl, BBR); err != nil {
			t.Fatal(err)
		}
		want(t, s, BBR, change)
	}
	restored, err := s.Restore()
	if diff := cmp.Diff([]Change{change}, restored); diff != "" || err != nil {
		t.Errorf("restored: %v (-want +got):\n%s", err, diff)
	}
	want(t, s, "cubic")
	if restored, err := s.Restore(); err != nil || len(restored) != 0 {
		t.Errorf("restored again: %v, %v", restored, err)
	}
}

func TestWhatIsThereAlreadyIsNotOurs(t *testing.T) {
	s := inFolder(t, BBR)
	if err := s.Set(CongestionControl, BBR); err != nil {
		t.Fatal(err)
	}
	want(t, s, BBR)
}

func TestWhatSomebodySetSinceStays(t *testing.T) {
	s := inFolder(t, "cubic")
	if err := s.Set(CongestionControl, BBR); err != nil {
		t.Fatal(err)
	}
	put(t, s, "reno")
	if restored, err := s.Restore(); err != nil || len(restored) != 0 {
		t.Errorf("restored %v, %v; want nothing", restored, err)
	}
	want(t, s, "reno")

	// Asked again, the newest of the administrator's values is the one to restore.
	if err := s.Set(CongestionControl, BBR); err != nil {
		t.Fatal(err)
	}
	want(t, s, BBR, Change{CongestionControl, "reno", BBR})
}

func TestFailureLeavesNoRecord(t *testing.T) {
	s := inFolder(t, "cubic")
	if err := os.Remove(s.path(CongestionControl)); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(CongestionControl, BBR); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("set: %v", err)
	}
	if _, err := os.Stat(s.record()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("record: %v", err)
	}
	for err, part := range map[error]string{unix.ENOENT: "CONFIG_TCP_CONG_BBR", unix.EROFS: "overlays/bbr"} {
		if text := explain(CongestionControl, BBR, err).Error(); !strings.Contains(text, part) {
			t.Errorf("%v is explained as %q; want %q", err, text, part)
		}
	}
}
