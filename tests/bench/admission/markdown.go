// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
)

// Marks around the generated part of the documentation.
const (
	beginMark = "<!-- bench:admission:begin -->"
	endMark   = "<!-- bench:admission:end -->"
)

// markdown is the generated part.
func (r *Result) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nA %s run of `make bench-admission`: %d rounds that take turns, client, etcd, kube-apiserver and webhook together on %d processors, %d namespaces, Linux %s, begun %s, took %.0f s.\n",
		r.Plan.Mode, r.Plan.Rounds, r.CPUs, r.Plan.Namespaces, r.Kernel, r.Started, r.Seconds)
	b.WriteString("An *unremarkable* pod is in a namespace without a policy: only the mutating webhook is called. A *capped* pod asks for more than its namespace's maximum: both are called. Empty webhooks: called for the same pods, in a process of their own, which reads the review and answers at once. CEL: a MutatingAdmissionPolicy and a ValidatingAdmissionPolicy that default and cap, nothing more.\n")
	r.writeVerdicts(&b)
	r.writeCreates(&b)
	b.WriteString("\n| handler alone, one core (bytes in, bytes out; no HTTP connection, no TLS) | reviews/s | µs each | bytes allocated | allocations |\n|---|---|---|---|---|\n")
	for _, h := range r.Handlers {
		fmt.Fprintf(&b, "| %s | %.0f | %.1f | %.0f | %.0f |\n", h.Name, h.ReviewsPerSecond, h.NsPerReview/1e3, h.BytesPerReview, h.Allocations)
	}
	const mib = 1 << 20
	fmt.Fprintf(&b, "\n| memory of the webhook's process, leading, MiB | resident | heap in use |\n|---|---|---|\n| empty cluster | %.0f | %.0f |\n| %d namespaces, %d LimitRanges | %.0f | %.0f |\n\n",
		r.Memory.EmptyRSS/mib, r.Memory.EmptyHeap/mib, r.Plan.Namespaces, r.Plan.Ranges, r.Memory.LargeRSS/mib, r.Memory.LargeHeap/mib)
	return b.String()
}

// writeVerdicts holds what was measured against the claims.
func (r *Result) writeVerdicts(b *strings.Builder) {
	b.WriteString("\n| kubepace | measured | claim | verdict |\n|---|---|---|---|\n")
	verdict := func(met bool) string {
		if met {
			return "met"
		}
		return "**not met**"
	}
	for _, k := range podKinds {
		got := added(r.series(k.Name, kubepace).OneP50, r.series(k.Name, none).OneP50)
		fmt.Fprintf(b, "| adds to the median create of a pod, one client: %s | %.2f ms | ≤ %.1f ms | %s |\n", k.Name, got, k.target, verdict(got <= k.target))
	}
	for _, k := range podKinds {
		got := added(r.series(k.Name, bare).OneP50, r.series(k.Name, none).OneP50)
		fmt.Fprintf(b, "| what webhooks add that do nothing but answer, in the same rounds: %s | %.2f ms | | |\n", k.Name, got)
	}
	for _, h := range r.Handlers {
		fmt.Fprintf(b, "| handler %s, ten containers, one core | %.0f reviews/s | ≥ %d | %s |\n", h.Name, h.ReviewsPerSecond, handlerTarget, verdict(h.ReviewsPerSecond >= handlerTarget))
	}
}

func (r *Result) writeCreates(b *strings.Builder) {
	fmt.Fprintf(b, "\n| pod | admission | 1 client: p50, p99 ms | added p50, p99 ms | creates/s | %d clients: p50, p99 ms | added p50, p99 ms | creates/s |\n|---|---|---|---|---|---|---|---|\n", r.Plan.Clients)
	for _, k := range podKinds {
		base := r.series(k.Name, none)
		for _, v := range variants {
			s := r.series(k.Name, v)
			fmt.Fprintf(b, "| %s | %s | %.2f, %.2f | %+.2f, %+.2f | %.0f | %.1f, %.1f | %+.1f, %+.1f | %.0f |\n", k.Name, v,
				median(s.OneP50), median(s.OneP99), added(s.OneP50, base.OneP50), added(s.OneP99, base.OneP99), median(s.OneRate),
				median(s.ManyP50), median(s.ManyP99), added(s.ManyP50, base.ManyP50), added(s.ManyP99, base.ManyP99), median(s.ManyRates))
		}
	}
}

const emptyDocument = `# Benchmarks of admission

## Admission
` + beginMark + "\n" + endMark + "\n"

// replaceSection writes between the marks of the file, which is made where it is missing.
func replaceSection(file, section string) error {
	content, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		content, err = []byte(emptyDocument), nil
	}
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
