// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func demo() Chart {
	points := func(rates ...float64) []Point {
		var ps []Point
		for i, r := range rates {
			ps = append(ps, Point{time.Duration(i) * time.Second / 2, time.Duration(i+1) * time.Second / 2, r})
		}
		return ps
	}
	return Chart{
		Title: "What three pods send", Subtitle: "wire rate at the receiver, mean of each half second <pacing>",
		Series: []Series{
			{Name: "team-a/reference", Note: "asked 10M, limit 10M", Limit: 10e6, Points: points(12e6, 9.9e6, 10e6, 10e6)},
			{Name: "team-b/unasked", Note: "asked nothing, limit 25M", Limit: 25e6, Points: points(21e6, 25e6, 24.9e6, 25e6)},
			{Name: "team-b/greedy", Note: "asked 1G & got 50M", Limit: 50e6, Points: points(48e6, 50e6, 49.9e6, 50.1e6)},
		},
	}
}

func TestWriteGolden(t *testing.T) {
	var got bytes.Buffer
	if err := demo().Write(&got); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "demo.svg")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("look at the picture, then run with -update (-want +got):\n%s", diff)
	}
}

// A picture that a browser refuses, or with NaN in it, is worse than none.
func TestWriteIsSound(t *testing.T) {
	for name, c := range map[string]Chart{
		"empty":         {},
		"no points":     {Series: []Series{{Name: "a", Limit: 1e6}}},
		"zero rates":    {Series: []Series{{Name: "a", Points: []Point{{0, time.Second, 0}}}}},
		"slow":          {Series: []Series{{Name: "a", Limit: 1000, Points: []Point{{0, time.Minute, 900}}}}},
		"fast":          {Series: []Series{{Name: "a", Limit: 1e15, Points: []Point{{0, time.Hour, 1e15}}}}},
		"many":          {Series: make([]Series, 20)},
		"hostile names": {Title: "</title><script>", Series: []Series{{Name: `"&<>`, Note: "]]>"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := c.Write(&got); err != nil {
				t.Fatal(err)
			}
			if text := got.String(); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || strings.Contains(text, "<script") {
				t.Errorf("unsound:\n%s", text)
			}
			dec := xml.NewDecoder(&got)
			for {
				if _, err := dec.Token(); errors.Is(err, io.EOF) {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestStep(t *testing.T) {
	for most, want := range map[float64]float64{10: 1, 10.1: 2, 49e6: 5e6, 51e6: 10e6, 1: 0.1, 25: 5, 0.3: 0.05} {
		if got := step(most); got < want*0.999 || got > want*1.001 {
			t.Errorf("step(%g) = %g, want %g", most, got, want)
		}
	}
}

func TestWriteReportsErrors(t *testing.T) {
	if err := demo().Write(broken{}); !errors.Is(err, errBroken) {
		t.Errorf("Write: %v, want %v", err, errBroken)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errBroken }
