// SPDX-License-Identifier: Apache-2.0

// Package traffic sends, receives and measures inside network namespaces, from goroutines of the calling process.
// Rates are in bits per second, sizes in bytes; Payload means application bytes, wire means everything from the link
// header on, counted for each segment.
package traffic

import (
	"math"
	"slices"
	"time"
)

// Runner runs a function inside a network namespace: *netlab.Namespace is one.
type Runner interface {
	Do(func() error) error
}

// Jain is Jain's fairness index of the shares: 1 where all are equal, 1/n where one has everything; 1 for none.
func Jain[T int | int64 | float64](shares []T) float64 {
	var sum, squares float64
	for _, s := range shares {
		sum += float64(s)
		squares += float64(s) * float64(s)
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(shares)) * squares)
}

// Percentile is the smallest value that at least p percent (0 to 100) of the values do not exceed; zero for none.
func Percentile[T int | int64 | float64 | time.Duration](values []T, p float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank-1, 0), len(sorted)-1)]
}

// Mean is the arithmetic mean; zero for none.
func Mean[T int | int64 | float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	var sum float64
	for _, v := range values {
		sum += float64(v)
	}
	return T(sum / float64(len(values)))
}

// series counts bytes in slots of equal length.
type series struct {
	slot  time.Duration
	bytes []int64
}

// between is the mean rate in bits/s of the slots that lie wholly between from and to.
func (s series) between(from, to time.Duration) float64 {
	first := int((from + s.slot - 1) / s.slot)
	last := min(int(to/s.slot), len(s.bytes))
	if first >= last {
		return 0
	}
	var sum int64
	for _, b := range s.bytes[first:last] {
		sum += b
	}
	return float64(sum) * 8 / (time.Duration(last-first) * s.slot).Seconds()
}
