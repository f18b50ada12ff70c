// SPDX-License-Identifier: Apache-2.0

package result

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

// sample is a case that meets every claim beside peers that look like the real ones.
func sample(v Variant, s Setting) Case {
	c := Case{
		Variant: v, Kernel: "6.1", LimitBps: s.LimitBps, CC: s.CC, Flows: s.Flows, Path: s.Path,
		RateBps: float64(s.LimitBps), FirstSecondBits: s.LimitBps, PingMs: Ping{P50: 1, P99: 5, Max: 6}, CPUSecondsPerGB: 10, Jain: 1,
	}
	switch v {
	case FIFO:
		c.PingMs.P99 = 2000
	case TBFSmall:
		c.PingMs.P99, c.CPUSecondsPerGB = 50, 11
	case None:
		c.LimitBps, c.RateBps = 0, 2e9
	}
	return c
}

func samples(settings ...Setting) []Case {
	var cases []Case
	for _, s := range settings {
		for _, v := range Variants {
			cases = append(cases, sample(v, s))
		}
	}
	return cases
}

var (
	ten     = Setting{LimitBps: 10e6, CC: "cubic", Flows: 1, Path: Straight}
	hundred = Setting{LimitBps: 100e6, CC: "bbr", Flows: 8, Path: VXLAN}
)

func TestCasesSurviveTheFile(t *testing.T) {
	cases := samples(ten, hundred)
	var file bytes.Buffer
	if err := WriteCases(&file, cases); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(file.String(), "\n"); lines != len(cases)+2 {
		t.Errorf("%d lines, want one for each of %d cases, and the brackets", lines, len(cases))
	}
	read, err := ReadCases(&file)
	if err != nil || !reflect.DeepEqual(read, cases) {
		t.Errorf("read %+v, %v; wrote %+v", read, err, cases)
	}
	if _, err := ReadCases(strings.NewReader("[{]")); err == nil {
		t.Error("broken JSON was read")
	}
}

func TestTable(t *testing.T) {
	table := NewTable(samples(hundred, ten))
	if want := []Setting{ten, hundred}; !reflect.DeepEqual(table.Settings, want) {
		t.Errorf("settings %v, want %v: sorted, without the unlimited one", table.Settings, want)
	}
	if c, ok := table.Case(hundred, None); !ok || c.Variant != None || c.RateBps != 2e9 {
		t.Errorf("control of %v: %+v, %v", hundred, c, ok)
	}
	if _, ok := table.Case(Setting{LimitBps: 1}, Kubepace); ok {
		t.Error("a case that was not measured was found")
	}
}

// verdict finds the claim that contains the words.
func verdict(t *testing.T, verdicts []Verdict, words string) Verdict {
	t.Helper()
	for _, v := range verdicts {
		if strings.Contains(v.Claim, words) {
			return v
		}
	}
	t.Fatalf("no claim says %q", words)
	return Verdict{}
}

func goodRun() Run {
	return Run{
		Latency:    []Latency{NewLatency(ten, []float64{1, 2, 30}, []float64{3, 4, 5})},
		Neighbours: []Neighbour{{Beside: "a flood", AboveMs: 1, WithinMs: NeighbourToleranceMs, Sent: 100}},
	}
}

func TestEveryClaimIsMet(t *testing.T) {
	for _, v := range Judge(samples(ten, hundred), goodRun()) {
		if !v.Met || v.Tested == 0 || !strings.HasPrefix(v.String(), "met ") {
			t.Errorf("%s", v)
		}
	}
}

func TestNothingMeasuredIsNotMet(t *testing.T) {
	for _, v := range Judge(nil, Run{}) {
		if v.Met || !strings.HasPrefix(v.String(), "NOT TESTED") {
			t.Errorf("%s", v)
		}
	}
}

// TestEachClaimCanFail breaks one figure at a time: the claim that is about it, and no other that it does not touch, is missed.
func TestEachClaimCanFail(t *testing.T) {
	eight := ten
	eight.Flows = 8
	for _, test := range []struct {
		claim  string
		change func(ours *Case, run *Run)
		others []string // claims that the same figure breaks
	}{
		{"±2 %", func(c *Case, _ *Run) { c.RateBps *= 0.97 }, nil},
		{"±2 %", func(c *Case, _ *Run) { c.RateBps *= 1.021 }, nil},
		{"±2 %", func(c *Case, _ *Run) { c.Least5sBps, c.Most5sBps = 0.97*c.RateBps, 1.01*c.RateBps }, nil},
		{"±2 %", func(c *Case, _ *Run) { c.Least5sBps, c.Most5sBps = c.RateBps, 1.021*c.RateBps }, nil},
		{"share fairly", func(c *Case, _ *Run) { c.Jain = 0.949 }, nil},
		{"50 times", func(c *Case, _ *Run) { c.PingMs.P99 = 41 }, nil},
		{"below small-burst TBF's", func(c *Case, _ *Run) { c.PingMs.P99 = 51 }, []string{"50 times"}},
		{"first second", func(c *Case, _ *Run) { c.FirstSecondBits = FirstSecondBound(c.LimitBps, c.Flows) + 1 }, nil},
		{"all cases of a limit together", func(c *Case, _ *Run) { c.CPUSecondsPerGB = 11.5 }, []string{"each case by itself"}},
		{"idle path's at 10M", func(_ *Case, r *Run) { r.Latency[0].AboveMs = 5.1 }, nil},
		{"idle path's at 10M", func(_ *Case, r *Run) { r.Latency[0].Lost = 1 }, nil},
		{"unlimited pod", func(_ *Case, r *Run) { r.Neighbours[0].AboveMs = 3.1 }, nil},
		{"unlimited pod", func(_ *Case, r *Run) { r.Neighbours[0].Lost = 1 }, nil},
	} {
		cases, run := samples(eight, hundred), goodRun()
		for i := range cases {
			if cases[i].Variant == Kubepace && cases[i].LimitBps == eight.LimitBps {
				test.change(&cases[i], &run)
			}
		}
		verdicts := Judge(cases, run)
		broken := verdict(t, verdicts, test.claim)
		if broken.Met || broken.Missed == 0 || len(broken.Misses) != broken.Missed || broken.Worst != broken.Misses[0] {
			t.Errorf("%q was to be missed: %+v", test.claim, broken)
		}
		for _, v := range verdicts {
			excused := v.Claim == broken.Claim
			for _, other := range test.others {
				excused = excused || strings.Contains(v.Claim, other)
			}
			if !excused && !v.Met {
				t.Errorf("a miss of %q broke %q as well", test.claim, v.Claim)
			}
		}
	}
}

// TestCPUIsComparedAtTheSameRateOnly: who delivers less has less to pay for.
func TestCPUIsComparedAtTheSameRateOnly(t *testing.T) {
	cases := samples(ten)
	for i := range cases {
		if cases[i].Variant == TBFSmall {
			cases[i].RateBps *= 0.9
		}
	}
	if v := verdict(t, Judge(cases, Run{}), "all cases of a limit together"); v.Tested != 0 {
		t.Errorf("%d comparisons of different rates", v.Tested)
	}
}

func TestLeastJain(t *testing.T) {
	for flows, want := range map[int]float64{1: 0, 8: 0.95, 64: 0.9, 256: 0} {
		if got := LeastJain(flows); got != want {
			t.Errorf("LeastJain(%d) = %v, want %v", flows, got, want)
		}
	}
}

func TestFirstSecondBound(t *testing.T) {
	for _, test := range []struct {
		limit int64
		flows int
		want  int64 // by hand: limit × (1 s + horizon/8 + floor) + 64 KiB
	}{
		{10e6, 1, 10e6 + 524288 + 375000},      // horizon 200 ms: 25 ms, and 12.5 ms
		{10e6, 64, 10e6 + 524288 + 900168},     // 64 flows of 8 MTU: 620.1 ms / 8, and 12.5 ms
		{100e3, 1, 100e3 + 524288 + 36336},     // 8 MTU are 969.0 ms: 121.1 ms; 2 MTU are 242.2 ms
		{1000, 1, 1000 + 524288 + 1125 + 1000}, // horizon 9 s: 1.125 s; a second
	} {
		if got := FirstSecondBound(test.limit, test.flows); got < test.want-5 || got > test.want+5 {
			t.Errorf("FirstSecondBound(%d, %d) = %d, want %d", test.limit, test.flows, got, test.want)
		}
	}
}

func TestLatencyTolerance(t *testing.T) {
	if l := NewLatency(ten, []float64{1, 2, 30}, []float64{5, 4, 3}); l.AboveMs != 2 || l.WithinMs != 5 {
		t.Errorf("%+v, want 2 ms above and a claim of 5", l)
	}
	if l := NewLatency(hundred, nil, nil); l.WithinMs != 3 {
		t.Errorf("a claim of %v ms at 100M, want 3", l.WithinMs)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{0: nil, 3: {3}, 2: {1, 3}, 5: {9, 5, 1}} {
		if got := Median(values); got != want {
			t.Errorf("Median(%v) = %v, want %v", values, got, want)
		}
	}
}

func TestJitter(t *testing.T) {
	ms := time.Millisecond
	if got := Jitter([]time.Duration{1 * ms, 4 * ms, 2 * ms}); got != 2500*time.Microsecond {
		t.Errorf("Jitter = %v, want the mean of 3 ms and 2 ms", got)
	}
	if got := Jitter([]time.Duration{ms}); got != 0 {
		t.Errorf("Jitter of one = %v", got)
	}
}

func TestBits(t *testing.T) {
	for bps, want := range map[int64]string{0: "no limit", 10e6: "10M", 1e9: "1G", 64e3: "64k", 1500: "1500"} {
		if got := Bits(bps); got != want {
			t.Errorf("Bits(%d) = %q, want %q", bps, got, want)
		}
	}
}
