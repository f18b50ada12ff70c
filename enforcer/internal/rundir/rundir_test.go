// SPDX-License-Identifier: Apache-2.0

package rundir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplacesWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "x.json")
	var got map[string]int
	if err := ReadJSON(path, &got); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("read of no file: %v; want os.ErrNotExist", err)
	}
	for i := range 3 {
		if err := WriteJSON(path, map[string]int{"n": i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ReadJSON(path, &got); err != nil || got["n"] != 2 {
		t.Errorf("read %v, %v; want n=2", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v, %v; want the file alone", entries, err)
	}
	if err := WriteJSON(path, func() {}); err == nil {
		t.Error("no error for what JSON cannot hold")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	if up, err := Locked(dir); up || err != nil {
		t.Fatalf("Locked before any agent = %v, %v", up, err)
	}
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if up, err := Locked(dir); !up || err != nil {
		t.Errorf("Locked while held = %v, %v", up, err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second Lock: %v; want ErrLocked", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if up, err := Locked(dir); up || err != nil {
		t.Errorf("Locked after the agent ended = %v, %v", up, err)
	}
}
