// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCountRequests(t *testing.T) {
	got := countRequests(`# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 3
apiserver_request_total{code="200",component="apiserver",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 4
apiserver_request_total{code="409",component="apiserver",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 1
apiserver_request_total{code="201",group="coordination.k8s.io",resource="leases",subresource="",verb="POST"} 2e+03
apiserver_request_totals{resource="pods",verb="LIST"} 9
`)
	want := map[string]int{"list pods": 3, "patch pods/status": 5, "create leases": 2000}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestLeaks(t *testing.T) {
	before := &Held{Pins: 5, Links: 2, Entries: map[string]int{"kubepace_devices": 2}, FDs: 20, Goroutines: 30}
	same := *before
	if l := same.leaks(before); len(l) != 0 {
		t.Errorf("leaks %v where nothing changed", l)
	}
	after := &Held{Pins: 5, Links: 3, Entries: map[string]int{"kubepace_devices": 3, "kubepace_flows": 1}, FDs: 19, Goroutines: 31}
	want := []string{"tcx links 2 → 3", "entries of kubepace_devices 2 → 3", "entries of kubepace_flows 0 → 1", "goroutines 30 → 31"}
	if diff := cmp.Diff(want, after.leaks(before)); diff != "" {
		t.Errorf("leaks (-want +got):\n%s", diff)
	}
	r := &Result{Churn: &Churn{Leaks: want}}
	if err := r.leaked(); err == nil || !strings.Contains(err.Error(), "tcx links 2 → 3") {
		t.Errorf("leaked: %v", err)
	}
	if r.Churn = (&Churn{Unenforced: 1}); r.leaked() == nil {
		t.Error("a pod that ended without its limit is fine")
	}
	if r.Churn = (&Churn{}); r.leaked() != nil {
		t.Error("a churn that left nothing is an error")
	}
}

func TestReplaceSection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before " + beginMark + "old" + endMark + " after")
	if err := replaceSection(file, "new"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "before "+beginMark+"\nnew"+endMark+" after" {
		t.Errorf("%q, %v", text, err)
	}
	if write("no marks"); replaceSection(file, "new") == nil {
		t.Error("a document without marks is fine")
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.204: "0.2", 1.5: "1.5", 2: "2", 41.26: "41.3", 876.4: "876"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}

// TestAsOnNode: both processes are back where they were, and no group is left.
func TestAsOnNode(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	groups := func() string {
		t.Helper()
		its, err := groupOf(child.Process.Pid)
		ours, err2 := groupOf(os.Getpid())
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return its + " " + ours
	}
	before, during := groups(), ""
	grouped, err := asOnNode(child.Process.Pid, func() error {
		during = groups()
		return errors.New("as said")
	})
	root, _ := hierarchy()
	want := root + "/kubepace-bench-pods " + root + "/kubepace-bench-system"
	if !grouped {
		want = before
	}
	if during != want || groups() != before || err == nil || err.Error() != "as said" {
		t.Errorf("in groups %t, from %s to %s to %s: %v; want %s meanwhile", grouped, before, during, groups(), err, want)
	}
	for _, name := range []string{"kubepace-bench-pods", "kubepace-bench-system"} {
		if _, err := os.Stat(filepath.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}
