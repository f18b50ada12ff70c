// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// Handler is a benchmark of package webhook, on one processor.
type Handler struct {
	Name             string  `json:"name"`
	ReviewsPerSecond float64 `json:"reviews_per_second_per_core"`
	NsPerReview      float64 `json:"ns_per_review"`
	BytesPerReview   float64 `json:"bytes_allocated_per_review"`
	Allocations      float64 `json:"allocations_per_review"`
}

// benchHandlers runs the benchmarks of package webhook: what goes in and comes out are bytes, without HTTP and TLS.
func benchHandlers(ctx context.Context, benchTime string) ([]Handler, error) {
	root, err := lab.Root()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=.", "-benchmem", "-cpu=1", "-benchtime="+benchTime, "./webhook")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test -bench: %w\n%s%s", err, out, &stderr)
	}
	return parseBenchmarks(string(out))
}

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\S+)\s+\d+\s+(.*)$`)

// parseBenchmarks reads the format that all of Go's tools share: a name, a count, then values with units.
func parseBenchmarks(text string) (out []Handler, err error) {
	for _, match := range benchLine.FindAllStringSubmatch(text, -1) {
		h, fields := Handler{Name: match[1]}, strings.Fields(match[2])
		for i := 0; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read benchmark %s: %w", h.Name, err)
			}
			switch fields[i+1] {
			case "ns/op":
				h.NsPerReview, h.ReviewsPerSecond = value, 1e9/value
			case "B/op":
				h.BytesPerReview = value
			case "allocs/op":
				h.Allocations = value
			}
		}
		out = append(out, h)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no benchmark in %q", text)
	}
	return out, nil
}
