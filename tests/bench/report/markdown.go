// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"strings"

	"github.com/kubepace/kubepace/tests/bench/result"
)

// runSection is the part of the documentation that a run writes.
func (r Report) runSection() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nA %s run: %d cases of %.0f s, Linux %s, %d processors, begun %s, took %.0f s",
		r.Run.Mode, len(r.Cases), r.Run.CaseSecs, r.Run.Kernel, r.Run.CPUs, r.Run.Started, r.Run.TookSecs)
	if r.Run.Revision != "" {
		fmt.Fprintf(&b, ", revision %s", r.Run.Revision)
	}
	b.WriteString(".\n")
	r.writeControls(&b)
	r.writeVerdicts(&b)
	t := result.NewTable(r.Cases)
	for _, m := range metrics() {
		m.write(&b, t)
	}
	r.writeLatency(&b)
	r.writeNeighbours(&b)
	r.writeBuckets(&b)
	r.writeLoad(&b)
	for _, warning := range r.Run.Warnings {
		fmt.Fprintf(&b, "\nWarning of the run: %s.\n", warning)
	}
	b.WriteString("\n")
	return b.String()
}

func (r Report) writeControls(b *strings.Builder) {
	if len(r.Run.Controls) == 0 {
		return
	}
	var p50, p99 []string
	for _, c := range r.Run.Controls {
		p50 = append(p50, fmt.Sprintf("%.1f", c.PingMs.P50))
		p99 = append(p99, fmt.Sprintf("%.1f", c.PingMs.P99))
	}
	fmt.Fprintf(b, "\nThe idle path's own ping, 1 s before each setting, in ms: p50 %s; p99 %s.\n", strings.Join(p50, ", "), strings.Join(p99, ", "))
}

func (r Report) writeVerdicts(b *strings.Builder) {
	b.WriteString("\n| claim | verdict | comparisons that hold | worst |\n|---|---|---|---|\n")
	for _, v := range result.Judge(r.Cases, r.Run) {
		word := "**not met**"
		if v.Tested == 0 {
			word = "not tested"
		} else if v.Met {
			word = "met"
		}
		fmt.Fprintf(b, "| %s | %s | %d of %d | %s |\n", v.Claim, word, v.Tested-v.Missed, v.Tested, v.Worst)
	}
}

// metric is a table: a row for each setting, a column for each variant.
type metric struct {
	title string
	cell  func(result.Case) string
}

func metrics() []metric {
	return []metric{
		{"Rate on the wire, Mbit/s (share of the limit)", func(c result.Case) string {
			if c.LimitBps == 0 {
				return fmt.Sprintf("%.0f", c.RateBps/1e6)
			}
			return fmt.Sprintf("%.2f (%.1f %%)", c.RateBps/1e6, 100*c.Share())
		}},
		{"Ping during saturation, ms: p50 / p99 / max, jitter; lost", func(c result.Case) string {
			if c.PingMs.AllLost() {
				return fmt.Sprintf("all %d lost", c.PingMs.Lost)
			}
			text := fmt.Sprintf("%.1f / %.1f / %.1f, %.1f", c.PingMs.P50, c.PingMs.P99, c.PingMs.Max, c.JitterMs)
			if c.PingMs.Lost > 0 {
				text += fmt.Sprintf("; %d lost", c.PingMs.Lost)
			}
			return text
		}},
		{"First second, Mbit on the wire", func(c result.Case) string { return fmt.Sprintf("%.2f", float64(c.FirstSecondBits)/1e6) }},
		{"Retransmitted segments / packets dropped", func(c result.Case) string { return fmt.Sprintf("%d / %d", c.Retransmits, c.Drops) }},
		{"Fairness among the flows (Jain)", func(c result.Case) string { return fmt.Sprintf("%.3f", c.Jain) }},
		{"Mean size of packets, in segments", func(c result.Case) string { return fmt.Sprintf("%.1f", c.SegmentsPerPacket) }},
		{"Processor time of the whole machine, s per GB", func(c result.Case) string { return fmt.Sprintf("%.1f", c.CPUSecondsPerGB) }},
	}
}

func (m metric) write(b *strings.Builder, t result.Table) {
	fmt.Fprintf(b, "\n**%s**\n\n| path, limit, flows |", m.title)
	for _, v := range result.Variants {
		fmt.Fprintf(b, " %s |", v)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(result.Variants)) + "\n")
	for _, s := range t.Settings {
		fmt.Fprintf(b, "| %s |", s)
		for _, v := range result.Variants {
			cell := "-"
			if c, ok := t.Case(s, v); ok {
				cell = m.cell(c)
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		b.WriteString("\n")
	}
}

func (r Report) writeLatency(b *strings.Builder) {
	if len(r.Run.Latency) == 0 {
		return
	}
	b.WriteString("\n**kubepace: p99 ping beside bulk transfers against the idle path's, ms** (medians of rounds that take turns)\n\n" +
		"| path, limit, flows | rounds | idle | busy | above | claim | lost | stamped with no delay, for each ping |\n|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.Run.Latency {
		fmt.Fprintf(b, "| %s | %d | %.1f | %.1f | %+.1f | ≤ %.0f | %d of %d | %.1f |\n", l.Setting, len(l.BusyP99Ms),
			result.Median(l.IdleP99Ms), result.Median(l.BusyP99Ms), l.AboveMs, l.WithinMs, l.Lost, l.Sent, l.SparsePer)
	}
}

func (r Report) writeNeighbours(b *strings.Builder) {
	if len(r.Run.Neighbours) == 0 {
		return
	}
	b.WriteString("\n**p99 ping of a pod without a limit beside another pod's load, ms** (medians of rounds that take turns)\n\n" +
		"| the other pod sends | its limit | rounds | idle | beside it | above | claim | lost | beside it with no limit |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, n := range r.Run.Neighbours {
		fmt.Fprintf(b, "| %s | %s | %d | %.1f | %.1f | %+.1f | ≤ %.0f | %d of %d | %.1f |\n", n.Beside, result.Bits(n.LimitBps), len(n.BusyP99Ms),
			result.Median(n.IdleP99Ms), result.Median(n.BusyP99Ms), n.AboveMs, n.WithinMs, n.Lost, n.Sent, result.Median(n.FreeP99Ms))
	}
}

func (r Report) writeBuckets(b *strings.Builder) {
	if len(r.Run.Buckets) == 0 {
		return
	}
	b.WriteString("\n**Token buckets as the plugin installed them**")
	if r.Run.PluginText != "" {
		fmt.Fprintf(b, " (containernetworking/plugins %s)", r.Run.PluginText)
	}
	b.WriteString("\n\n| variant | limit | burst asked for, bits | `tc qdisc show` |\n|---|---|---|---|\n")
	for _, k := range r.Run.Buckets {
		fmt.Fprintf(b, "| %s | %s | %d | `%s` |\n", k.Variant, result.Bits(k.LimitBps), k.BurstBits, k.Shown)
	}
}

func (r Report) writeLoad(b *strings.Builder) {
	if len(r.Run.UnderLoad) == 0 {
		return
	}
	b.WriteString("\n**A program's own run time under load** (kernel statistics; a GSO packet is one run)\n\n| program | setting | runs | ns each |\n|---|---|---|---|\n")
	for _, l := range r.Run.UnderLoad {
		fmt.Fprintf(b, "| %s | %s | %d | %.0f |\n", l.Program, l.Setting, l.Runs, l.NsEach)
	}
}

// costSection holds the figures of BPF_PROG_TEST_RUN and of the maps.
func (r Report) costSection() string {
	var b strings.Builder
	for _, c := range r.Costs {
		fmt.Fprintf(&b, "\nLinux %s on %s; an empty program takes %.0f ns, which is subtracted.\n\n", c.Kernel, c.Machine, c.Empty)
		b.WriteString("| way through the program | limited pods in the maps | ns, median | lowest and highest round | runs |\n|---|---|---|---|---|\n")
		for _, row := range c.Rows {
			fmt.Fprintf(&b, "| %s | %d | %.0f | %.0f, %.0f | %d |\n", row.What, row.Pods, row.NsEach, row.Lowest, row.Highest, row.Runs)
		}
	}
	c := r.Costs[len(r.Costs)-1]
	var perPod uint64
	b.WriteString("\n| map | entries | bytes in the kernel's account, 10,000 pods | bytes for a pod with one device |\n|---|---|---|---|\n")
	for _, m := range c.Maps {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", m.Map, m.Entries, m.Bytes, m.PerPod)
		perPod += m.PerPod
	}
	fmt.Fprintf(&b, "| sum | | | %d |\n\n", perPod)
	return b.String()
}
