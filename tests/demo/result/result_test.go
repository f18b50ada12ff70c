// SPDX-License-Identifier: Apache-2.0

package result

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
)

func reference() Pod {
	return Pod{
		Pod: "reference", Namespace: "team-a", Asked: "10M", Admitted: "10M", Source: bandwidth.SourcePod,
		LimitBPS: 10_000_000, MeasuredBPS: 9_564_000, Mode: Pacing, WantAdmitted: "10M", WantSource: bandwidth.SourcePod,
	}
}

func refused() Pod {
	return Pod{Pod: "typo", Namespace: "team-a", Asked: "10 megabits", Refused: true, Message: "no"}
}

func TestWireRate(t *testing.T) {
	for payload, want := range map[int64]int64{0: 0, 1448: 1514, 9_564_000: 9_999_928, 9_564_069: 10_000_000} {
		if got := WireRate(payload); got != want {
			t.Errorf("WireRate(%d) = %d, want %d", payload, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Pod)
		want   string // part of the error; empty for none
	}{
		"as it should be":       {func(*Pod) {}, ""},
		"pacing, 5 % under":     {func(p *Pod) { p.MeasuredBPS = payload(9_500_001) }, ""},
		"pacing, 5.1 % under":   {func(p *Pod) { p.MeasuredBPS = payload(9_489_000) }, "-5.1 %, while pacing allows ±5 %"},
		"pacing, 5.1 % over":    {func(p *Pod) { p.MeasuredBPS = payload(10_511_000) }, "+5.1 %"},
		"policing, 14 % under":  {func(p *Pod) { p.Mode = Policing; p.MeasuredBPS = payload(8_600_000) }, ""},
		"policing, 16 % under":  {func(p *Pod) { p.Mode = Policing; p.MeasuredBPS = payload(8_400_000) }, "allows ±15 %"},
		"nothing measured":      {func(p *Pod) { p.MeasuredBPS = 0 }, "-100.0 %"},
		"no mode":               {func(p *Pod) { p.Mode = "" }, "not enforced"},
		"mode unknown":          {func(p *Pod) { p.Mode = "none" }, `not enforced: mode "none"`},
		"refused":               {func(p *Pod) { p.Refused = true; p.Message = "why" }, "was refused: why"},
		"other limit admitted":  {func(p *Pod) { p.Admitted = "20M" }, `was admitted with "20M"`},
		"other source":          {func(p *Pod) { p.Source = bandwidth.SourceCapped }, "(capped)"},
		"node keeps another":    {func(p *Pod) { p.LimitBPS = 20_000_000 }, "the node enforces 20000000"},
		"admitted against want": {func(p *Pod) { p.WantAdmitted = ""; p.Refused = false }, "should have been refused"},
	} {
		t.Run(name, func(t *testing.T) {
			p := reference()
			tc.change(&p)
			err := New("6.1", []Pod{p, refused()}).Check()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("Check: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "team-a/reference")):
				t.Errorf("Check: %v; want %q", err, tc.want)
			}
		})
	}
}

func payload(wire int64) int64 { return wire * PayloadBytes / FrameBytes }

func TestCheckNamesEveryFailure(t *testing.T) {
	slow, lost := reference(), reference()
	slow.MeasuredBPS, lost.Pod, lost.Mode = 1, "lost", ""
	err := New("6.1", []Pod{slow, lost}).Check()
	if err == nil || !strings.Contains(err.Error(), "team-a/reference") || !strings.Contains(err.Error(), "team-a/lost") {
		t.Errorf("Check: %v; want both pods", err)
	}
	if err := New("6.1", nil).Check(); err == nil {
		t.Error("a report without pods passed")
	}
}

func TestMode(t *testing.T) {
	paced, policed := reference(), reference()
	policed.Mode = Policing
	for want, pods := range map[string][]Pod{Pacing: {refused(), paced, paced}, Policing: {policed, refused()}, "mixed": {paced, policed, paced}, "": {refused()}} {
		if got := New("6.1", pods).Mode; got != want {
			t.Errorf("mode = %q, want %q", got, want)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	var got bytes.Buffer
	if err := New("6.1.0", []Pod{reference(), refused()}).WriteJSON(&got); err != nil {
		t.Fatal(err)
	}
	const want = `{
  "kernel": "6.1.0",
  "mode": "pacing",
  "pods": [
    {
      "pod": "reference",
      "namespace": "team-a",
      "asked": "10M",
      "admitted": "10M",
      "source": "pod",
      "refused": false,
      "limit_bps": 10000000,
      "measured_bps": 9564000,
      "wire_bps": 9999928,
      "mode": "pacing"
    },
    {
      "pod": "typo",
      "namespace": "team-a",
      "asked": "10 megabits",
      "admitted": "",
      "source": "",
      "refused": true,
      "limit_bps": 0,
      "measured_bps": 0,
      "wire_bps": 0,
      "mode": ""
    }
  ]
}
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("demo.json (-want +got):\n%s", diff)
	}
}

func TestWriteTable(t *testing.T) {
	unasked := reference()
	unasked.Pod, unasked.Asked, unasked.Source = "unasked", "", bandwidth.SourceNamespaceDefault
	var got bytes.Buffer
	if err := New("6.1.0", []Pod{reference(), unasked, refused()}).WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const want = `POD               ASKED          ADMITTED  WHY                      PAYLOAD Mbit/s  WIRE Mbit/s  OFF LIMIT  MODE
team-a/reference  "10M"          10M       as asked                 9.56            10.00        -0.0 %     pacing
team-a/unasked    (none)         10M       the namespace's default  9.56            10.00        -0.0 %     pacing
team-a/typo       "10 megabits"  refused   not a rate               -               -            -          -
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}
