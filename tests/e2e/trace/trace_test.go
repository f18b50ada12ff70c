// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"testing"
	"time"
)

// of makes readings 100 ms apart, each of which took 1 ms.
func of(bytes ...int64) Trace {
	var t Trace
	for i, b := range bytes {
		at := time.Unix(1000, 0).Add(time.Duration(i) * 100 * time.Millisecond)
		t = append(t, Sample{at, at.Add(time.Millisecond), b})
	}
	return t
}

func TestExcess(t *testing.T) {
	const rate = 8000 // 1,000 bytes/s: 100 in each gap, and one in the millisecond of a reading
	for name, tc := range map[string]struct {
		trace Trace
		want  int64
	}{
		"nothing":                  {of(), 0},
		"one reading":              {of(5000), 0},
		"silent":                   {of(7, 7, 7), 0},
		"below the limit":          {of(0, 50, 100, 150), 0},
		"a burst at the beginning": {of(0, 601, 701, 801), 500},
		"a burst in the middle":    {of(0, 100, 200, 801, 901), 500},
		"a burst after silence":    {of(0, 0, 0, 0, 0, 601), 500},
		"twice the limit":          {of(0, 201, 401, 601), 300},
	} {
		if got := tc.trace.Excess(rate); got != tc.want {
			t.Errorf("%s: %d bytes too many; want %d", name, got, tc.want)
		}
	}
}

func TestSilence(t *testing.T) {
	for name, tc := range map[string]struct {
		trace Trace
		want  time.Duration
	}{
		"nothing":             {of(), 0},
		"before and after it": {of(0, 0, 0, 0, 1, 2, 2, 2, 2), 0},
		"steady":              {of(0, 1, 2, 3), 0},
		"in the middle":       {of(0, 1, 1, 1, 1, 2, 3), 299 * time.Millisecond},
	} {
		if got := tc.trace.Silence(); got > tc.want || got < tc.want-2*time.Millisecond {
			t.Errorf("%s: silent for %v; want %v", name, got, tc.want)
		}
	}
}

func TestRate(t *testing.T) {
	trace := of(0, 100, 200, 400, 600, 800)
	start := trace[0].Before
	if got := trace.Rate(start, start.Add(250*time.Millisecond)); got != 8000 {
		t.Errorf("at first %f bit/s; want 8000", got)
	}
	if got := trace.Rate(start.Add(150*time.Millisecond), start.Add(time.Second)); got != 16000 {
		t.Errorf("later %f bit/s; want 16000", got)
	}
	if got := trace.Rate(start.Add(time.Hour), start.Add(2*time.Hour)); got != 0 {
		t.Errorf("never %f bit/s; want 0", got)
	}
}
