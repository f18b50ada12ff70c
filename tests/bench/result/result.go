// SPDX-License-Identifier: Apache-2.0

// Package result holds what the datapath benchmark measured, judges it against the project's own claims, and prints
// it. It is pure: it measures nothing itself.
package result

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Variant is a way to limit a pod.
type Variant string

// The variants, in the order in which they run and are shown.
const (
	None          Variant = "none"           // no limit
	Kubepace      Variant = "kubepace"       // this project, pacing, fq on the uplink as the agent sets it
	FIFO          Variant = "fifo"           // one clock per pod at the exit device's egress, horizon 2 s; same fq
	TBFContainerd Variant = "tbf-containerd" // CNI bandwidth plugin with the burst that containerd asks for
	TBFSmall      Variant = "tbf-small"      // the same with a burst of 20 ms of the rate, at least 64 KiB
)

// Variants are all of them.
var Variants = []Variant{None, Kubepace, FIFO, TBFContainerd, TBFSmall}

// Path is a way from the pod to the other host.
type Path string

// The paths.
const (
	Straight      Path = "straight"       // bridge, routing, uplink
	VXLAN         Path = "vxlan"          // bridge, routing, tunnel, uplink; measured inside the tunnel
	RedirectNeigh Path = "redirect_neigh" // bpf_redirect_neigh from the pod's veth to the uplink
)

// Paths are all of them.
var Paths = []Path{Straight, VXLAN, RedirectNeigh}

// Setting is what the variants are compared under.
type Setting struct {
	LimitBps int64  `json:"limit_bps"` // bits/s on the wire; 0 for none
	CC       string `json:"cc"`        // congestion control
	Flows    int    `json:"flows"`     // of TCP, in bulk
	Path     Path   `json:"path"`
}

func (s Setting) String() string {
	return fmt.Sprintf("%s %s %s ×%d", s.Path, Bits(s.LimitBps), s.CC, s.Flows)
}

// Ping is the round trip of 20 echo requests a second, sent by the same pod while it saturates its limit. Times are
// in milliseconds.
type Ping struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
	Lost int     `json:"lost"`
}

// AllLost tells whether no answer came: the times say nothing then.
func (p Ping) AllLost() bool { return p.Lost > 0 && p.Max == 0 }

// Case is one measurement. Wire means: from the link header to the payload, of every segment, counted at the other
// host (with a tunnel: inside it).
type Case struct {
	Variant  Variant `json:"variant"`
	Kernel   string  `json:"kernel"` // uname -r
	LimitBps int64   `json:"limit_bps"`
	CC       string  `json:"cc"`
	Flows    int     `json:"flows"`
	Path     Path    `json:"path"`
	RateBps  float64 `json:"rate_bps"` // on the wire, from 1 s after the transfer's start to its end
	// Least5sBps and Most5sBps are the least and the highest rate of any 5 s (and at least 200 packets) in that time.
	Least5sBps float64 `json:"least_5s_bps"`
	Most5sBps  float64 `json:"most_5s_bps"`
	// FirstSecondBits is what was on the wire within 1 s of the transfer's start.
	FirstSecondBits int64 `json:"first_second_bits"`
	PingMs          Ping  `json:"ping_ms"`
	// JitterMs is the mean difference, in milliseconds, between one round trip and the next.
	JitterMs    float64 `json:"jitter_ms"`
	Retransmits int64   `json:"retransmits"` // TCP segments sent again
	Drops       int64   `json:"drops"`       // packets, by the limiter and the uplink's qdisc
	// CPUSecondsPerGB is the processor time of the whole machine (senders, receiver, meter, ping and background
	// included) for each 10^9 bytes on the wire.
	CPUSecondsPerGB float64 `json:"cpu_s_per_gb"`
	// CPURounds are the measurements that CPUSecondsPerGB is the median of; empty where there was one.
	CPURounds []float64 `json:"cpu_s_per_gb_rounds,omitempty"`
	// SegmentsPerPacket is the mean size of what passed through the node, in segments: TSO packets that losses or short
	// queues keep small cost more processor time.
	SegmentsPerPacket float64 `json:"segments_per_packet"`
	Jain              float64 `json:"jain"` // fairness among the flows, by payload
}

// Setting is the case without its variant.
func (c Case) Setting() Setting { return Setting{c.LimitBps, c.CC, c.Flows, c.Path} }

// Share is the rate over the limit; 0 where there is no limit.
func (c Case) Share() float64 {
	if c.LimitBps == 0 {
		return 0
	}
	return c.RateBps / float64(c.LimitBps)
}

// Jitter is the mean difference between one time and the next; zero for fewer than two.
func Jitter(times []time.Duration) time.Duration {
	if len(times) < 2 {
		return 0
	}
	var sum time.Duration
	for i, t := range times[1:] {
		sum += max(t-times[i], times[i]-t)
	}
	return sum / time.Duration(len(times)-1)
}

// Milliseconds of a duration, to the microsecond.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Bits prints a rate as users write limits.
func Bits(bps int64) string {
	switch {
	case bps == 0:
		return "no limit"
	case bps%1e9 == 0:
		return fmt.Sprintf("%dG", bps/1e9)
	case bps%1e6 == 0:
		return fmt.Sprintf("%dM", bps/1e6)
	case bps%1e3 == 0:
		return fmt.Sprintf("%dk", bps/1e3)
	}
	return fmt.Sprint(bps)
}

// Table finds the cases of each setting.
type Table struct {
	Settings []Setting // with a limit, sorted
	cases    map[Setting]map[Variant]Case
}

// NewTable sorts the cases.
func NewTable(cases []Case) Table {
	t := Table{cases: map[Setting]map[Variant]Case{}}
	for _, c := range cases {
		s := c.Setting()
		if t.cases[s] == nil {
			t.cases[s] = map[Variant]Case{}
			if s.LimitBps > 0 {
				t.Settings = append(t.Settings, s)
			}
		}
		t.cases[s][c.Variant] = c
	}
	slices.SortFunc(t.Settings, func(a, b Setting) int {
		return cmp.Or(
			cmp.Compare(slices.Index(Paths, a.Path), slices.Index(Paths, b.Path)),
			cmp.Compare(a.LimitBps, b.LimitBps), strings.Compare(b.CC, a.CC), cmp.Compare(a.Flows, b.Flows))
	})
	return t
}

// Case of a variant under a setting. The unlimited control runs once for all limits.
func (t Table) Case(s Setting, v Variant) (Case, bool) {
	if v == None {
		s.LimitBps = 0
	}
	c, ok := t.cases[s][v]
	return c, ok
}

// ReadCases reads what WriteCases wrote.
func ReadCases(r io.Reader) ([]Case, error) {
	var cases []Case
	if err := json.NewDecoder(r).Decode(&cases); err != nil {
		return nil, fmt.Errorf("read cases: %w", err)
	}
	return cases, nil
}

// WriteCases writes a JSON array, a line for each case.
func WriteCases(w io.Writer, cases []Case) error {
	var b strings.Builder
	b.WriteString("[")
	for i, c := range cases {
		text, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("write cases: %w", err)
		}
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString("\n")
		b.Write(text)
	}
	b.WriteString("\n]\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write cases: %w", err)
	}
	return nil
}
