// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubepace/kubepace/tests/bench/result"
)

func TestFullPlanHasEveryCaseOnce(t *testing.T) {
	p := fullPlan()
	seen := map[string]bool{}
	for _, path := range p.paths {
		for _, s := range p.steps(path) {
			for _, v := range s.variants {
				key := string(v) + " " + s.String()
				if seen[key] {
					t.Errorf("%s runs twice", key)
				}
				seen[key] = true
			}
		}
	}
	// Every variant with a limit under every setting, and the unlimited one once for both limits.
	settings := len(p.paths) * len(p.ccs) * len(p.flows)
	want := settings*len(p.limits)*(len(p.variants)-1) + settings
	if len(seen) != want || p.cases() != want {
		t.Errorf("%d cases, cases() = %d, want %d", len(seen), p.cases(), want)
	}
}

func TestQuickPlanIsPartOfTheFullOne(t *testing.T) {
	full, quick := fullPlan(), quickPlan()
	if quick.cases() >= full.cases() {
		t.Errorf("quick has %d cases, full %d", quick.cases(), full.cases())
	}
	for _, f := range quick.flows {
		if !slices.Contains(full.flows, f) {
			t.Errorf("%d flows are in the quick plan only", f)
		}
	}
	// A claim that is not tested would fail --strict.
	if quick.neighbourRounds == 0 || len(quick.latencyLimits) == 0 {
		t.Error("the quick plan leaves a claim untested")
	}
}

func TestChoose(t *testing.T) {
	p, err := fullPlan().choose([]string{
		"paths=vxlan,straight", "variants=kubepace", "ccs=bbr", "flows=1,8", "limits=10000000", "latency=1000000", "neighbour=0", "duration=3s",
	})
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case p.mode != "chosen":
		t.Errorf("mode %q: its tables would replace the full run's", p.mode)
	case p.cases() != 4:
		t.Errorf("%d cases, want 2 paths × 2 numbers of flows", p.cases())
	case p.paths[0] != result.VXLAN, p.ccs[0] != "bbr", p.neighbourRounds != 0, p.duration != 3*time.Second, p.latencyLimits[0] != 1e6:
		t.Errorf("plan %+v", p)
	}
}

func TestChooseLeavesOut(t *testing.T) {
	p, err := fullPlan().choose([]string{"latency=0", "neighbour=0"})
	if err != nil || len(p.latencyLimits) != 0 || p.neighbourRounds != 0 {
		t.Errorf("plan %+v, %v", p, err)
	}
}

func TestChooseRefuses(t *testing.T) {
	for word, want := range map[string]string{
		"paths=moon":    `"moon"`,
		"variants=best": `"best"`,
		"flows=0":       `"0"`,
		"limits=ten":    `"ten"`,
		"duration=1s":   "at least 3s",
		"colour=red":    "one of paths",
	} {
		if _, err := fullPlan().choose([]string{word}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("choose(%q): %v, want an error that says %s", word, err, want)
		}
	}
}

// TestCloseOnes: what is as close as two runs of the same are, either way round.
func TestCloseOnes(t *testing.T) {
	for _, c := range []struct {
		a, b float64
		want bool
	}{{4.9, 4.7, true}, {4.7, 4.9, true}, {10, 10, true}, {10, 9.3, false}, {9.3, 10, false}} {
		if got := isClose(c.a, c.b); got != c.want {
			t.Errorf("isClose(%v, %v) = %v", c.a, c.b, got)
		}
	}
	values := []float64{5, 4, 4.5}
	if got := result.Median(values); got != 4.5 || values[0] != 5 {
		t.Errorf("median %v of %v; want 4.5, and the order kept", got, values)
	}
}
