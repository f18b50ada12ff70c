// SPDX-License-Identifier: Apache-2.0

// Package trace judges a transfer by what a counter of bytes said over time: was it ever over its limit, was it ever silent?
package trace

import "time"

// Sample is one reading of a counter. The reading happened between Before and After.
type Sample struct {
	Before, After time.Time
	Bytes         int64
}

// Trace is a transfer, in the order of time.
type Trace []Sample

// Excess is the most, over all windows, by which the bytes in a window exceeded what the rate allows in it. Where the reading's
// moment is uncertain, the window counts as the longest that it can have been.
func (t Trace) Excess(bitsPerSecond int64) int64 {
	var most, lowest float64
	allowed := func(at time.Time) float64 { return at.Sub(t[0].Before).Seconds() * float64(bitsPerSecond) / 8 }
	for i, s := range t {
		if i > 0 {
			most = max(most, float64(s.Bytes)-allowed(s.After)-lowest)
		}
		if begin := float64(s.Bytes) - allowed(s.Before); i == 0 || begin < lowest {
			lowest = begin
		}
	}
	return int64(most)
}

// Silence is the longest time without a byte between the first and the last one. It is exact to two readings.
func (t Trace) Silence() time.Duration {
	var longest time.Duration
	last := -1 // the latest reading that showed news
	for i := 1; i < len(t); i++ {
		if t[i].Bytes == t[i-1].Bytes {
			continue
		}
		if last >= 0 {
			// Nothing came from that reading to the one before this.
			longest = max(longest, t[i-1].Before.Sub(t[last].After))
		}
		last = i
	}
	return longest
}

// Rate is the mean in bits per second between two moments.
func (t Trace) Rate(from, to time.Time) float64 {
	var first, last *Sample
	for i := range t {
		if t[i].Before.Before(from) || t[i].After.After(to) {
			continue
		}
		if first == nil {
			first = &t[i]
		}
		last = &t[i]
	}
	if first == nil || !last.After.After(first.Before) {
		return 0
	}
	return float64(last.Bytes-first.Bytes) * 8 / last.Before.Sub(first.Before).Seconds()
}
