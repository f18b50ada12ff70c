// SPDX-License-Identifier: Apache-2.0

package result

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Run says how the cases came about.
type Run struct {
	Mode       string      `json:"mode"`    // "quick" or "full"
	Kernel     string      `json:"kernel"`  // uname -r
	CPUs       int         `json:"cpus"`    // of the machine that ran the cases
	Started    string      `json:"started"` // RFC 3339, UTC
	CaseSecs   float64     `json:"case_seconds"`
	TookSecs   float64     `json:"took_seconds"`
	Controls   []Control   `json:"controls"`
	Latency    []Latency   `json:"latency"`
	Neighbours []Neighbour `json:"neighbours"`
	Buckets    []Bucket    `json:"buckets"`
	UnderLoad  []Load      `json:"under_load"`
	Warnings   []string    `json:"warnings"`
	Revision   string      `json:"revision,omitempty"`
	PluginText string      `json:"plugin,omitempty"` // version of the CNI bandwidth plugin
}

// Control is the ping with nothing else to send, taken between the cases.
type Control struct {
	Setting
	PingMs Ping `json:"ping_ms"`
}

// Latency is the ping beside bulk transfers against the ping of the idle path, in rounds that take turns: a machine that
// changes its mood does so for both.
type Latency struct {
	Setting
	IdleP99Ms []float64 `json:"idle_p99_ms"` // a value for each round
	BusyP99Ms []float64 `json:"busy_p99_ms"`
	Lost      int       `json:"lost"`      // pings of all rounds
	Sent      int       `json:"sent"`      // while busy
	SparsePer float64   `json:"sparse"`    // packets that the program stamped with no delay, for each ping sent
	AboveMs   float64   `json:"above_ms"`  // median of busy less median of idle
	WithinMs  float64   `json:"within_ms"` // the claim
}

// NeighbourToleranceMs is what "waits no longer" allows for noise, in milliseconds.
const NeighbourToleranceMs = 3

// Neighbour is the ping of a pod without a limit beside another pod's load, in rounds that take turns.
type Neighbour struct {
	Beside    string    `json:"beside"`      // the other pod's load
	LimitBps  int64     `json:"limit_bps"`   // the other pod's
	IdleP99Ms []float64 `json:"idle_p99_ms"` // with no load; a value for each round
	BusyP99Ms []float64 `json:"busy_p99_ms"` // beside the load, limited by kubepace
	FreeP99Ms []float64 `json:"free_p99_ms"` // beside the same load, not limited
	Lost      int       `json:"lost"`        // pings of all rounds, beside the limited load
	Sent      int       `json:"sent"`        // likewise
	AboveMs   float64   `json:"above_ms"`    // median of busy less median of idle
	WithinMs  float64   `json:"within_ms"`   // the claim
}

// NewLatency computes the medians.
func NewLatency(s Setting, idle, busy []float64) Latency {
	l := Latency{Setting: s, IdleP99Ms: idle, BusyP99Ms: busy, AboveMs: Median(busy) - Median(idle), WithinMs: 3}
	if s.LimitBps < 100e6 {
		l.WithinMs = 5
	}
	return l
}

// Median of values; 0 for none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Bucket is a token bucket as the CNI bandwidth plugin installed it.
type Bucket struct {
	Variant   Variant `json:"variant"`
	LimitBps  int64   `json:"limit_bps"`
	BurstBits uint64  `json:"burst_bits"` // asked for
	Shown     string  `json:"shown"`      // by tc
}

// Load is a program's own account of its runs, taken with the kernel's statistics on.
type Load struct {
	Program string  `json:"program"`
	Setting Setting `json:"setting"`
	Runs    uint64  `json:"runs"`    // packets; a GSO packet counts once
	NsEach  float64 `json:"ns_each"` // mean
}

// CostRow is the cost of one run of kubepace's program, by BPF_PROG_TEST_RUN.
type CostRow struct {
	What    string  `json:"what"`
	Pods    int     `json:"pods"`    // in the maps
	Runs    int     `json:"runs"`    // measured
	NsEach  float64 `json:"ns_each"` // median of the rounds, the empty program's subtracted
	Lowest  float64 `json:"ns_lowest"`
	Highest float64 `json:"ns_highest"`
}

// MapRow is what one map takes.
type MapRow struct {
	Map     string `json:"map"`
	Entries uint32 `json:"entries"` // at most
	Bytes   uint64 `json:"bytes"`   // kernel's own account (memlock)
	PerPod  uint64 `json:"per_pod"` // bytes of keys and values that one pod with one device uses
}

// Costs are the figures of one machine.
type Costs struct {
	Kernel  string    `json:"kernel"`
	Machine string    `json:"machine"`
	Empty   float64   `json:"empty_ns"` // an empty program, measured the same way
	Rows    []CostRow `json:"rows"`
	Maps    []MapRow  `json:"maps"`
}

// Read decodes one of the types above.
func Read[T any](r io.Reader) (T, error) {
	var v T
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		return v, fmt.Errorf("read %T: %w", v, err)
	}
	return v, nil
}

// Write encodes one of the types above.
func Write[T any](w io.Writer, v T) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %T: %w", v, err)
	}
	if _, err := w.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write %T: %w", v, err)
	}
	return nil
}
