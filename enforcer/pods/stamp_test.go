// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-logr/logr"
)

// TestUnchangedManifestsAreNotReadAgain, changed ones are, also where size and name stay.
func TestUnchangedManifestsAreNotReadAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write := func(limit string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(manifestOf("a", limit)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("10M")
	f, err := NewFolder(dir, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	remembered := func(settled bool) {
		m := f.files["a.yaml"]
		m.pods = []Pod{{Pod: m.pods[0].Pod, Rate: 1000}}
		m.stamp.settledByThen = settled
		f.files["a.yaml"] = m
	}
	limit := func() string {
		if err := f.load(); err != nil {
			t.Fatal(err)
		}
		return f.Snapshot().Pods[0].Rate.String()
	}
	if remembered(false); limit() != "10M" {
		t.Errorf("limit %s: a file that had just been written when it was read was not read again", limit())
	}
	if remembered(true); limit() != "1k" {
		t.Errorf("limit %s: an unchanged file was read again", limit())
	}
	// What a file that settled long ago was read as stands for it. The stamp of the file is young here.
	old := stampOf(path)
	old.settledByThen = true
	if !stampOf(path).same(old) {
		t.Error("a settled file is not known again")
	}
	write("20M")
	if again := stampOf(path); again.same(old) {
		t.Error("a file that was written again passes for the old one")
	}
	if (stamp{}).same(stamp{}) {
		t.Error("two files that cannot be looked at pass for the same")
	}
	if limit() != "20M" {
		t.Errorf("limit %s, want 20M", limit())
	}
}
