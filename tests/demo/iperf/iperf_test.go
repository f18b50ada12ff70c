// SPDX-License-Identifier: Apache-2.0

package iperf

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// testdata/server.json: iperf3 3.12 as server, 2 s at 10 Mbit/s over loopback, -i 0.5.
func TestParse(t *testing.T) {
	output, err := os.ReadFile("testdata/server.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(output)
	if err != nil {
		t.Fatal(err)
	}
	if got.Bytes != 2621440 || got.Duration != 2000323*time.Microsecond {
		t.Errorf("received %d bytes in %v, want 2621440 in 2.000323s", got.Bytes, got.Duration)
	}
	if rate := float64(got.Bytes) * 8 / got.Duration.Seconds(); int64(rate) != int64(got.BitsPerSecond) {
		t.Errorf("%f bits/s, want %f", got.BitsPerSecond, rate)
	}
	if len(got.Intervals) != 4 || got.Intervals[1].End != 1000126*time.Microsecond || int64(got.Intervals[1].BitsPerSecond) != 10486640 {
		t.Errorf("intervals %+v", got.Intervals)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		output, want string
	}{
		"not JSON":      {"iperf3: error", "read iperf3 output"},
		"its own error": {`{"end": {}, "error": "the client has unexpectedly closed the connection"}`, "unexpectedly closed"},
		"nothing":       {`{"end": {"sum_received": {"seconds": 10, "bytes": 0}}}`, "nothing was received"},
		"no total":      {`{}`, "nothing was received"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tc.output))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Parse: %v; want %q", err, tc.want)
			}
		})
	}
	if _, err := Parse([]byte(`{}`)); !errors.Is(err, ErrNothingReceived) {
		t.Errorf("Parse: %v; want ErrNothingReceived", err)
	}
}
