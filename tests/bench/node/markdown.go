// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Marks around the generated part of the documentation.
const (
	beginMark = "<!-- bench:node:begin -->"
	endMark   = "<!-- bench:node:end -->"
)

// markdown is the generated part.
func (r *Result) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nA %s run of `make bench-node` on %d processors, Linux %s, begun %s, took %.0f s; the machine's load before was %.1f.\n",
		r.Plan.Mode, r.CPUs, r.Kernel, r.Started, r.Seconds, r.Load)
	if r.Kept != "" {
		fmt.Fprintf(&b, "Some parts are of an earlier run, begun %s.\n", r.Kept)
	}
	r.writeVerdicts(&b)
	r.writeSteady(&b)
	r.writeChurn(&b)
	r.writeCluster(&b)
	b.WriteString("\n")
	return b.String()
}

func (r *Result) writeVerdicts(b *strings.Builder) {
	fmt.Fprintf(b, "\n| %d limited pods on a node | measured | claim | verdict |\n|---|---|---|---|\n", r.Plan.Pods)
	row := func(what string, value float64, unit string, claim float64) {
		verdict := "met"
		if value > claim {
			verdict = "**not met**"
		}
		fmt.Fprintf(b, "| %s | %s %s | ≤ %s %s | %s |\n", what, number(value), unit, number(claim), unit, verdict)
	}
	for _, s := range r.Steady {
		row("memory, pods from "+s.from(), mib(s.Memory.Resident), "MiB", mib(claimMemory))
		row(fmt.Sprintf("at rest for %.0f s, pods from %s", s.IdleFor, s.from()), s.IdleCPU, "% of one processor", claimIdle)
		row("restart to all adopted, slowest, pods from "+s.from(), slices.Max(s.RestartMs)/1000, "s", claimRestart.Seconds())
	}
	if r.Burst != nil {
		row(fmt.Sprintf("CNI ADD to enforced, %d pods at once, p99", r.Burst.Pods), r.Burst.Lag.P99, "ms", ms(claimEnforce))
	}
	if c := r.Churn; c != nil {
		fmt.Fprintf(b, "| %d pods/s for %.0f s: what is held more than before | %s | nothing | %s |\n", r.Plan.PerSecond, c.Seconds,
			orNothing(c.Leaks), map[bool]string{true: "met", false: "**not met**"}[len(c.Leaks) == 0])
	}
}

func (s *Steady) from() string {
	if s.Source == "folder" {
		return "a folder"
	}
	return "the API server"
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// number has as many digits as tell something.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

func (r *Result) writeSteady(b *strings.Builder) {
	if len(r.Steady) == 0 {
		return
	}
	b.WriteString("\n| pods from | resident, of it anonymous; peak; Go heap, MiB | at rest, % of one processor | first start, s | restart to all adopted: median, slowest, s | processor time of a restart, s | threads, goroutines, fds |\n|---|---|---|---|---|---|---|\n")
	for _, s := range r.Steady {
		m := s.Memory
		fmt.Fprintf(b, "| %s | %.1f, %.1f; %.1f; %.1f | %.3f over %.0f s | %.2f | %.2f, %.2f | %.2f | %.0f, %.0f, %d |\n", s.from(),
			mib(m.Resident), mib(m.Own), mib(m.Peak), mib(m.Heap), s.IdleCPU, s.IdleFor, s.ColdMs/1000,
			quantile(s.RestartMs, 0.5)/1000, slices.Max(s.RestartMs)/1000, s.StartCPUMs/1000, s.Threads, s.Goroutines, s.FDs)
	}
}

func (r *Result) writeChurn(b *strings.Builder) {
	c := r.Churn
	if c == nil {
		return
	}
	if burst := r.Burst; burst != nil {
		fmt.Fprintf(b, "\n%d pods that start at once beside %d others, by the CNI plugins loopback, bridge and host-local%s: from the end of CNI ADD to the limit in force p50 %.0f ms, p90 %.0f, p99 %.0f, worst %.0f; "+
			"%d had it before CNI ADD had returned, %d before their container's first packet, all %d in the end. CNI ADD itself took p50 %.0f ms, p99 %.0f.\n",
			burst.Pods, burst.Standing, map[bool]string{false: ", without control groups"}[burst.Grouped], burst.Lag.P50, burst.Lag.P90, burst.Lag.P99, burst.Lag.Max, burst.BeforeADD, burst.InForce, burst.Enforced, burst.ADD.P50, burst.ADD.P99)
	}
	fmt.Fprintf(b, "\n%d pods came and went in %.0f s beside %d that stayed, each for %v. The agent used %.1f %% of one processor. From the end of CNI ADD to the limit in force: p50 %.0f ms, p90 %.0f, p99 %.0f, worst %.0f; %d ended without.\n",
		c.Pods, c.Seconds, c.Standing, r.Plan.Lifetime, c.CPU, c.EnforceMs[0], c.EnforceMs[1], c.EnforceMs[2], c.EnforceMs[3], c.Unenforced)
	b.WriteString("\n| held by the agent | before | after |\n|---|---|---|\n")
	row := func(what string, before, after any) { fmt.Fprintf(b, "| %s | %v | %v |\n", what, before, after) }
	row("pins", c.Before.Pins, c.After.Pins)
	row("tcx links", c.Before.Links, c.After.Links)
	for _, name := range slices.Sorted(maps.Keys(c.After.Entries)) {
		row("entries of "+name, c.Before.Entries[name], c.After.Entries[name])
	}
	row("file descriptors", c.Before.FDs, c.After.FDs)
	row("goroutines", c.Before.Goroutines, c.After.Goroutines)
	row("Go heap in use, MiB", number(mib(c.Before.Memory.Heap)), number(mib(c.After.Memory.Heap)))
	row("resident, MiB", number(mib(c.Before.Memory.Resident)), number(mib(c.After.Memory.Resident)))
	row("BPF maps, programs on the whole machine", fmt.Sprintf("%d, %d", c.Before.Maps, c.Before.Programs), fmt.Sprintf("%d, %d", c.After.Maps, c.After.Programs))
	fmt.Fprintf(b, "\nResident over the time, MiB: %s.\n", strings.Trim(fmt.Sprint(c.Resident), "[]"))
}

func (r *Result) writeCluster(b *strings.Builder) {
	c := r.Cluster
	if c == nil {
		return
	}
	nodes := float64(c.Nodes)
	fmt.Fprintf(b, "\n%d nodes with %d limited pods each, on one kube-apiserver: %.0f watches are open for each node. %d pods change their limit in the last column.\n",
		c.Nodes, c.PodsPerNode, float64(c.Watches)/nodes, c.RolledPods)
	phases := []Phase{c.Start, c.Idle, c.Roll}
	names := map[string]bool{}
	for _, ph := range phases {
		for name := range ph.Requests {
			names[name] = true
		}
	}
	b.WriteString("\n| for each node | start | at rest, a minute | for each changed pod |\n|---|---|---|---|\n")
	row := func(what string, of func(Phase) float64) {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", what, number(of(c.Start)/nodes), number(of(c.Idle)/nodes/c.Idle.Seconds*60), number(of(c.Roll)/float64(max(1, c.RolledPods))))
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		row("requests: "+name, func(ph Phase) float64 { return float64(ph.Requests[name]) })
	}
	row("KB from the API server", func(ph Phase) float64 { return float64(ph.Down) / 1000 })
	row("KB to the API server", func(ph Phase) float64 { return float64(ph.Up) / 1000 })
	fmt.Fprintf(b, "\nAll %d agents together: started within %.0f s; at rest %s KB/s from the API server and %s KB/s to it.\n", c.Nodes, c.Start.Seconds,
		number(float64(c.Idle.Down)/1000/c.Idle.Seconds), number(float64(c.Idle.Up)/1000/c.Idle.Seconds))
}

// replaceSection writes between the marks of the file.
func replaceSection(file, section string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(content), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks %s or %s", file, beginMark, endMark)
	}
	return os.WriteFile(file, []byte(before+beginMark+"\n"+section+endMark+after), 0o644)
}
