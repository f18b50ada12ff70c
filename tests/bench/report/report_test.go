// SPDX-License-Identifier: Apache-2.0

package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubepace/kubepace/tests/bench/result"
)

func sample() Report {
	s := result.Setting{LimitBps: 10e6, CC: "cubic", Flows: 8, Path: result.Straight}
	r := Report{
		Run: result.Run{
			Mode: "full", Kernel: "6.1.0", CPUs: 2, Started: "2026-01-02T03:04:05Z", CaseSecs: 8, TookSecs: 100, Revision: "abc",
			Latency:    []result.Latency{result.NewLatency(s, []float64{1}, []float64{2})},
			Neighbours: []result.Neighbour{{Beside: "a flood", LimitBps: 10e6, IdleP99Ms: []float64{1}, BusyP99Ms: []float64{2.5}, FreeP99Ms: []float64{9}, AboveMs: 1.5, WithinMs: 3, Sent: 60}},
			UnderLoad:  []result.Load{{Program: "kubepace", Setting: s, Runs: 10, NsEach: 70}},
			Buckets:    []result.Bucket{{Variant: result.TBFSmall, LimitBps: 10e6, BurstBits: 524288, Shown: "tbf rate 10Mbit"}},
			Warnings:   []string{"a meter missed packets"},
		},
		Costs: []result.Costs{{Kernel: "6.1.0", Machine: "m", Empty: 5, Rows: []result.CostRow{{What: "no limit", NsEach: 12}},
			Maps: []result.MapRow{{Map: "pods", Entries: 1, Bytes: 2, PerPod: 40}, {Map: "flows", PerPod: 2}}}},
	}
	for _, v := range result.Variants {
		c := result.Case{Variant: v, LimitBps: s.LimitBps, CC: s.CC, Flows: s.Flows, Path: s.Path, RateBps: 9.9e6, PingMs: result.Ping{P50: 1, P99: 4, Max: 5, Lost: 2}}
		if v == result.None {
			c.LimitBps = 0
		}
		r.Cases = append(r.Cases, c)
	}
	return r
}

const document = `# Benchmarks
by hand
<!-- bench:quick:begin -->
quick, of yesterday
<!-- bench:quick:end -->
<!-- bench:full:begin -->
outdated
<!-- bench:full:end -->
<!-- bench:cost:begin -->
outdated
<!-- bench:cost:end -->
also by hand
`

func update(t *testing.T, r Report, path string) string {
	t.Helper()
	if err := r.UpdateDocs(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestUpdateDocsKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "benchmarks.md")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	text := update(t, sample(), path)
	for _, want := range []string{
		"by hand\n<!-- bench:quick:begin -->\nquick, of yesterday\n<!-- bench:quick:end -->\n", "also by hand\n",
		"revision abc", "9.90 (99.0 %)", "1.0 / 4.0 / 5.0, 0.0; 2 lost", "| a flood | 10M | 1 | 1.0 | 2.5 | +1.5 | ≤ 3 | 0 of 60 | 9.0 |",
		"Warning of the run: a meter missed packets.", "tbf rate 10Mbit", "| kubepace | straight 10M cubic ×8 | 10 | 70 |", "| sum | | | 42 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "outdated") {
		t.Error("the earlier run's section is still there")
	}
	if again := update(t, sample(), path); again != text {
		t.Error("writing the same again changes the file")
	}
	figures, err := filepath.Glob(filepath.Join(filepath.Dir(path), "benchmarks", "*.svg"))
	if err != nil || len(figures) != len(pictures()) {
		t.Errorf("figures %v, %v; want %d", figures, err, len(pictures()))
	}
}

func TestLostPingsAreNoQuickPings(t *testing.T) {
	r := sample()
	r.Cases[0].PingMs = result.Ping{Lost: 180}
	dir := t.TempDir()
	if err := r.WriteFigures(dir); err != nil {
		t.Fatal(err)
	}
	figure, err := os.ReadFile(filepath.Join(dir, "ping.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(figure), ">all lost<"); n != 1 {
		t.Errorf("the figure says %d times that all are lost, want once", n)
	}
	if text := r.runSection(); strings.Count(text, "| all 180 lost |") != 1 || strings.Contains(text, "0.0 / 0.0 / 0.0, 0.0; 180 lost") {
		t.Errorf("the table gives times to pings that were lost:\n%s", text)
	}
}

// TestTablesAreTables: every row of a table has as many cells as its head.
func TestTablesAreTables(t *testing.T) {
	cells := 0
	for _, line := range strings.Split(sample().runSection()+sample().costSection(), "\n") {
		n := strings.Count(line, "|")
		switch {
		case n == 0:
			cells = 0
		case cells == 0:
			cells = n
		case n != cells:
			t.Errorf("%d cells, the head has %d: %s", n, cells, line)
		}
	}
}

func TestChosenCasesLeaveTheDocumentAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "benchmarks.md")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	r := sample()
	r.Run.Mode = "chosen"
	if text := update(t, r, path); text != document {
		t.Errorf("changed to\n%s", text)
	}
}

func TestMissingMarkersAreAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "benchmarks.md")
	if err := os.WriteFile(path, []byte("<!-- bench:full:begin -->\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sample().UpdateDocs(path); err == nil || !strings.Contains(err.Error(), "bench:") {
		t.Errorf("error %v, want one that names the marker", err)
	}
}

func TestVerdictsDecide(t *testing.T) {
	r := sample()
	var out strings.Builder
	if r.PrintVerdicts(&out) {
		t.Error("claims that the sample misses were met")
	}
	// The sample's FIFO is as quick as ours.
	if !strings.Contains(out.String(), "NOT MET    p99 ping at least 50 times") || !strings.Contains(out.String(), "missed:") {
		t.Errorf("verdicts:\n%s", out.String())
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cases, run := write("cases.json", `[{"variant":"fifo","rate_bps":5}]`), write("run.json", `{"mode":"quick"}`)
	r, err := Load(cases, run, filepath.Join(dir, "absent.json"))
	if err != nil || len(r.Cases) != 1 || r.Cases[0].RateBps != 5 || r.Run.Mode != "quick" || len(r.Costs) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Load(cases, filepath.Join(dir, "absent.json")); err == nil {
		t.Error("a missing run was read")
	}
	if _, err := Load(write("broken.json", "{"), run); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("error %v, want one that names the file", err)
	}
}
