// SPDX-License-Identifier: Apache-2.0

package result

import (
	"fmt"
	"math"
	"time"
)

// What the project claims for itself.
const (
	RateTolerance = 0.02 // of the limit, on the wire
	FIFOFactor    = 50   // the FIFO's p99 ping over ours, cubic at 10M
	// sameRate is how far two rates may be apart for a comparison of processor time "at the same delivered rate".
	sameRate = 0.05
)

// Verdict is one claim, held against one run.
type Verdict struct {
	Claim  string
	Met    bool
	Tested int      // comparisons
	Missed int      // that failed
	Worst  string   // the comparison that is nearest to failing, or failed worst
	Misses []string // each one that failed
}

func (v Verdict) String() string {
	word := "NOT MET"
	switch {
	case v.Tested == 0:
		word = "NOT TESTED"
	case v.Met:
		word = "met"
	}
	return fmt.Sprintf("%-10s %s: %d of %d comparisons hold; worst: %s", word, v.Claim, v.Tested-v.Missed, v.Tested, v.Worst)
}

// tally collects comparisons; badness above 1 is a miss.
type tally struct {
	Verdict
	worst float64
}

func (t *tally) add(badness float64, text string) {
	t.Tested++
	if badness > 1 {
		t.Missed++
		t.Misses = append(t.Misses, text)
	}
	if t.Tested == 1 || badness > t.worst {
		t.worst, t.Worst = badness, text
	}
	t.Met = t.Missed == 0
}

// Judge holds the cases against every claim.
func Judge(cases []Case, run Run) []Verdict {
	t := NewTable(cases)
	return []Verdict{
		t.judgeRate(), t.judgeFIFO(), t.judgePing(), t.judgeFairness(), t.judgeFirstSecond(), t.judgeCPU(), t.judgeEachCPU(),
		judgeLatency(run.Latency), judgeNeighbours(run.Neighbours),
	}
}

func judgeLatency(latency []Latency) Verdict {
	v := tally{Verdict: Verdict{Claim: "p99 ping at most 5 ms above the idle path's at 10M, 3 ms from 100M on, none lost (medians of alternating rounds)"}}
	for _, l := range latency {
		badness := l.AboveMs / l.WithinMs
		if l.Lost > 0 {
			badness = max(badness, 2)
		}
		v.add(badness, fmt.Sprintf("%s: %+.1f ms, %d of %d lost", l.Setting, l.AboveMs, l.Lost, l.Sent))
	}
	return v.Verdict
}

func judgeNeighbours(neighbours []Neighbour) Verdict {
	v := tally{Verdict: Verdict{Claim: fmt.Sprintf(
		"an unlimited pod beside a limited one: p99 ping at most %d ms above the idle path's, none lost (medians of alternating rounds)",
		NeighbourToleranceMs)}}
	for _, n := range neighbours {
		badness := n.AboveMs / n.WithinMs
		if n.Lost > 0 {
			badness = max(badness, 2)
		}
		v.add(badness, fmt.Sprintf("beside %s: %+.1f ms, %d of %d lost", n.Beside, n.AboveMs, n.Lost, n.Sent))
	}
	return v.Verdict
}

func (t Table) judgeRate() Verdict {
	v := tally{Verdict: Verdict{Claim: "kubepace within ±2 % of the limit on the wire, over any 5 s"}}
	for _, s := range t.Settings {
		if c, ok := t.Case(s, Kubepace); ok {
			off := c.Share() - 1
			if c.Most5sBps > 0 { // a run of less than 6 s has the mean only
				low, high := c.Least5sBps/float64(s.LimitBps)-1, c.Most5sBps/float64(s.LimitBps)-1
				off = max(low, high)
				if -low > high {
					off = low
				}
			}
			v.add(math.Abs(off)/RateTolerance, fmt.Sprintf("%s: %+.2f %%", s, 100*off))
		}
	}
	return v.Verdict
}

func (t Table) judgeFIFO() Verdict {
	v := tally{Verdict: Verdict{Claim: "p99 ping at least 50 times below the single FIFO's, cubic at 10M"}}
	for _, s := range t.Settings {
		ours, ok := t.Case(s, Kubepace)
		theirs, ok2 := t.Case(s, FIFO)
		if !ok || !ok2 || s.CC != "cubic" || s.LimitBps != 10e6 {
			continue
		}
		factor := theirs.PingMs.P99 / max(ours.PingMs.P99, 0.001)
		v.add(FIFOFactor/max(factor, 0.001), fmt.Sprintf("%s: %.1f ms against %.0f ms, %.0f times", s, ours.PingMs.P99, theirs.PingMs.P99, factor))
	}
	return v.Verdict
}

func (t Table) judgePing() Verdict {
	v := tally{Verdict: Verdict{Claim: "p99 ping below small-burst TBF's"}}
	t.pairs(TBFSmall, func(s Setting, ours, theirs Case) {
		v.add(ours.PingMs.P99/max(theirs.PingMs.P99, 0.001), fmt.Sprintf("%s: %.1f ms against %.1f ms", s, ours.PingMs.P99, theirs.PingMs.P99))
	})
	return v.Verdict
}

// LeastJain is how fairly so many equal flows must share a limit; 0 where nothing is claimed.
func LeastJain(flows int) float64 {
	switch {
	case flows < 2 || flows > 64:
		return 0
	case flows <= 8:
		return 0.95
	}
	return 0.9
}

func (t Table) judgeFairness() Verdict {
	v := tally{Verdict: Verdict{Claim: "flows of a pod share fairly: Jain's index at least 0.95 for 8, 0.9 for 64"}}
	for _, s := range t.Settings {
		c, ok := t.Case(s, Kubepace)
		if least := LeastJain(s.Flows); ok && least > 0 {
			v.add((1-c.Jain)/(1-least), fmt.Sprintf("%s: %.3f", s, c.Jain))
		}
	}
	return v.Verdict
}

func (t Table) judgeFirstSecond() Verdict {
	v := tally{Verdict: Verdict{Claim: "first second within limit × t + 64 KB + the bound on sparse debt"}}
	for _, s := range t.Settings {
		if c, ok := t.Case(s, Kubepace); ok {
			bound := FirstSecondBound(s.LimitBps, s.Flows)
			v.add(float64(c.FirstSecondBits)/float64(bound), fmt.Sprintf("%s: %.2f Mbit, bound %.2f", s, float64(c.FirstSecondBits)/1e6, float64(bound)/1e6))
		}
	}
	return v.Verdict
}

// judgeCPU compares sums: the time of one case of a few seconds is as uncertain as the difference.
func (t Table) judgeCPU() Verdict {
	v := tally{Verdict: Verdict{Claim: "processor time per GB not above small-burst TBF's at the same delivered rate, all cases of a limit together"}}
	type sums struct{ ours, theirs float64 }
	of := map[int64]*sums{}
	var limits []int64
	t.sameRate(func(s Setting, ours, theirs Case) {
		if of[s.LimitBps] == nil {
			of[s.LimitBps] = &sums{}
			limits = append(limits, s.LimitBps)
		}
		of[s.LimitBps].ours += ours.CPUSecondsPerGB
		of[s.LimitBps].theirs += theirs.CPUSecondsPerGB
	})
	for _, limit := range limits {
		ratio := of[limit].ours / max(of[limit].theirs, 0.001)
		v.add(ratio, fmt.Sprintf("%s: %.2f of it", Bits(limit), ratio))
	}
	return v.Verdict
}

// sameRate calls fn for every pair that delivered the same.
func (t Table) sameRate(fn func(s Setting, ours, theirs Case)) {
	t.pairs(TBFSmall, func(s Setting, ours, theirs Case) {
		if math.Abs(ours.RateBps/theirs.RateBps-1) <= sameRate {
			fn(s, ours, theirs)
		}
	})
}

func (t Table) judgeEachCPU() Verdict {
	v := tally{Verdict: Verdict{Claim: "the same, each case by itself"}}
	t.sameRate(func(s Setting, ours, theirs Case) {
		v.add(ours.CPUSecondsPerGB/max(theirs.CPUSecondsPerGB, 0.001), fmt.Sprintf("%s: %.1f s against %.1f s", s, ours.CPUSecondsPerGB, theirs.CPUSecondsPerGB))
	})
	return v.Verdict
}

// pairs calls fn for every setting under which both kubepace and the other ran.
func (t Table) pairs(other Variant, fn func(s Setting, ours, theirs Case)) {
	for _, s := range t.Settings {
		ours, ok := t.Case(s, Kubepace)
		theirs, ok2 := t.Case(s, other)
		if ok && ok2 {
			fn(s, ours, theirs)
		}
	}
}

// FirstSecondBound is what a paced pod may send within its first second, in bits: limit × 1 s + 64 KiB + the sparse
// debt of ARCHITECTURE.md's invariant 4, for so many competing flows.
func FirstSecondBound(limitBps int64, flows int) int64 {
	const frame, gso, least = 1514, 65536, 200 * time.Millisecond
	mtu := time.Duration(frame * 8e9 / float64(limitBps))
	horizon := min(max(least, 8*mtu*time.Duration(flows)), 9*time.Second)
	debt := horizon/8 + max(least/16, min(2*mtu, time.Second))
	return limitBps + gso*8 + int64(float64(limitBps)*debt.Seconds())
}
