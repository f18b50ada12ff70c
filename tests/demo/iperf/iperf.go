// SPDX-License-Identifier: Apache-2.0

// Package iperf reads what an iperf3 server saw: its own JSON (iperf3 -s -1 -J), so every figure is the receiver's.
package iperf

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Interval is the mean rate of payload in one reporting interval.
type Interval struct {
	Start, End    time.Duration // since the test began
	BitsPerSecond float64
}

// Received is what arrived at the receiver.
type Received struct {
	Duration      time.Duration // by the receiver's clock
	Bytes         int64         // TCP payload
	BitsPerSecond float64       // Bytes over Duration
	Intervals     []Interval
}

// ErrNothingReceived means that iperf3 ended without an error and without data.
var ErrNothingReceived = errors.New("nothing was received")

type sum struct {
	Start         float64 `json:"start"`
	End           float64 `json:"end"`
	Seconds       float64 `json:"seconds"`
	Bytes         int64   `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
}

// Parse reads the JSON of an iperf3 server that received one TCP test. iperf3 reports its errors in the JSON too.
func Parse(output []byte) (Received, error) {
	var raw struct {
		Error     string `json:"error"`
		Intervals []struct {
			Sum sum `json:"sum"`
		} `json:"intervals"`
		End struct {
			Received sum `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(output, &raw); err != nil {
		return Received{}, fmt.Errorf("read iperf3 output: %w", err)
	}
	if raw.Error != "" {
		return Received{}, fmt.Errorf("iperf3: %s", raw.Error)
	}
	total := raw.End.Received
	if total.Bytes <= 0 || total.Seconds <= 0 {
		return Received{}, fmt.Errorf("iperf3: %w", ErrNothingReceived)
	}
	got := Received{Duration: seconds(total.Seconds), Bytes: total.Bytes, BitsPerSecond: total.BitsPerSecond}
	for _, i := range raw.Intervals {
		got.Intervals = append(got.Intervals, Interval{seconds(i.Sum.Start), seconds(i.Sum.End), i.Sum.BitsPerSecond})
	}
	return got, nil
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }
