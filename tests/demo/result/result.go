// SPDX-License-Identifier: Apache-2.0

// Package result decides whether the demonstration held: it turns what was asked, admitted and measured into a
// verdict, a table for people and demo.json for programs. It does no I/O of its own.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/kubepace/kubepace/bandwidth"
)

// Frames as the demo's links carry them: IPv4 at MTU 1500 with TCP timestamps.
const (
	// FrameBytes is a full frame as the limit counts it: link header to payload.
	FrameBytes = 14 + 1500
	// PayloadBytes is what of it belongs to the application: without link (14), IP (20) and TCP headers (20 + 12).
	PayloadBytes = 1500 - 20 - 20 - 12
)

// Modes, spelled as kubepace-enforcer prints them.
const (
	Pacing   = "pacing"
	Policing = "policing"
	mixed    = "mixed"
)

// tolerance is how far a pod's wire rate may be off its limit, as a fraction of the limit.
var tolerance = map[string]float64{Pacing: 0.05, Policing: 0.15}

// Pod is one line of the demonstration: what its author asked, what admission decided, what the kernel kept.
type Pod struct {
	Pod         string `json:"pod"`
	Namespace   string `json:"namespace"`
	Asked       string `json:"asked"`        // the annotation as typed; empty for none
	Admitted    string `json:"admitted"`     // the annotation after admission; empty if refused
	Source      string `json:"source"`       // why: one of the bandwidth.Source values; empty if refused
	Refused     bool   `json:"refused"`      // admission denied the pod
	LimitBPS    int64  `json:"limit_bps"`    // the limit that the node keeps, wire bits/s
	MeasuredBPS int64  `json:"measured_bps"` // TCP payload at the receiver, bits/s
	WireBPS     int64  `json:"wire_bps"`     // the same in whole frames: WireRate(MeasuredBPS)
	Mode        string `json:"mode"`         // how the node keeps it: pacing or policing

	// What the demo expects and what people read; not part of the JSON.
	WantAdmitted string `json:"-"` // the admitted text that proves the decision right; empty: must be refused
	WantSource   string `json:"-"`
	Message      string `json:"-"` // admission's own words: the denial, or a warning
}

// Report is demo.json.
type Report struct {
	Kernel string `json:"kernel"` // release, as in uname -r
	Mode   string `json:"mode"`   // the mode of all pods, or "mixed"
	Pods   []Pod  `json:"pods"`
}

// New makes a report and fills in each pod's wire rate and the common mode.
func New(kernel string, pods []Pod) Report {
	r := Report{Kernel: kernel, Pods: pods}
	for i := range r.Pods {
		p := &r.Pods[i]
		p.WireBPS = WireRate(p.MeasuredBPS)
		switch {
		case p.Refused || p.Mode == r.Mode:
		case r.Mode == "":
			r.Mode = p.Mode
		default:
			r.Mode = mixed
		}
	}
	return r
}

// WireRate is the rate in frames that carries the given rate of payload.
func WireRate(payload int64) int64 {
	return int64(math.Round(float64(payload) * FrameBytes / PayloadBytes))
}

// Check returns every way in which the demonstration fell short, joined; nil if it held.
func (r Report) Check() error {
	var errs []error
	for _, p := range r.Pods {
		if err := p.check(); err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Pod, err))
		}
	}
	if len(r.Pods) == 0 {
		errs = append(errs, errors.New("no pods"))
	}
	return errors.Join(errs...)
}

func (p Pod) check() error {
	switch {
	case p.WantAdmitted == "" && !p.Refused:
		return fmt.Errorf("asked %q and was admitted; it should have been refused", p.Asked)
	case p.WantAdmitted == "":
		return nil
	case p.Refused:
		return fmt.Errorf("was refused: %s", p.Message)
	case p.Admitted != p.WantAdmitted || p.Source != p.WantSource:
		return fmt.Errorf("was admitted with %q (%s); want %q (%s)", p.Admitted, p.Source, p.WantAdmitted, p.WantSource)
	}
	rate, err := bandwidth.Parse(p.Admitted)
	if err != nil {
		return fmt.Errorf("admitted limit: %w", err)
	}
	if p.LimitBPS != rate.BitsPerSecond() {
		return fmt.Errorf("was admitted with %s, but the node enforces %d bits/s", p.Admitted, p.LimitBPS)
	}
	return p.checkRate()
}

func (p Pod) checkRate() error {
	allowed, ok := tolerance[p.Mode]
	if !ok {
		return fmt.Errorf("is not enforced: mode %q", p.Mode)
	}
	off := p.Deviation()
	if math.Abs(off) > allowed {
		return fmt.Errorf("sent %s Mbit/s on the wire under a limit of %s: %+.1f %%, while %s allows ±%.0f %%",
			mbit(p.WireBPS), p.Admitted, 100*off, p.Mode, 100*allowed)
	}
	return nil
}

// Deviation is how far the wire rate is off the limit, as a fraction of the limit.
func (p Pod) Deviation() float64 {
	return float64(p.WireBPS-p.LimitBPS) / float64(p.LimitBPS)
}

// WriteJSON writes demo.json.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func mbit(bps int64) string { return fmt.Sprintf("%.2f", float64(bps)/1e6) }
