// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// busy is a node at the n-th second: one pod in each state that a person may meet.
func busy(n uint64) []datapath.State {
	state := func(name, limit string, index int, bytes uint64, c datapath.Counters, backlog time.Duration) datapath.State {
		c.Bytes, c.Packets = bytes*n, bytes*n/1514
		return datapath.State{
			Limit: datapath.Limit{Pod: pod("shop", name), Rate: bandwidth.MustParse(limit), Mode: datapath.ModePacing,
				Devices: []datapath.Device{{Index: index, Name: fmt.Sprintf("veth%d", index), Hook: datapath.HookTCX}}},
			Counters: c, Backlog: backlog, Horizon: 200 * time.Millisecond,
		}
	}
	return append(states(n),
		state("half", "100M", 20, 6250000, datapath.Counters{Sparse: 31 * n}, 0),
		state("losing", "1G", 21, 124000000, datapath.Counters{Delayed: 81000 * n, Marked: 3 * n, Dropped: 12345 * n}, 150*time.Millisecond),
		state("burst", "64k", 22, 10000, datapath.Counters{Delayed: 6 * n}, 12345*time.Millisecond),
	)
}

func second(n uint64) Sample {
	return Sample{At: time.Date(2026, 7, 1, 12, 30, int(n), 0, time.UTC), States: busy(n), Status: agent(), Running: true}
}

func TestTop(t *testing.T) {
	f := Between(second(1), second(2))
	down := Between(second(1), second(2))
	down.AgentRunning, down.Problem = false, "load pinned map kubepace_pods: no such file or directory"
	for name, test := range map[string]struct {
		frame  Frame
		screen Screen
	}{
		"natural":  {f, Screen{}},
		"wide":     {f, Screen{Width: 160, Height: 24, Blocks: true}},
		"usual":    {f, Screen{Width: 80, Height: 24}},
		"narrow":   {f, Screen{Width: 40, Height: 24, Blocks: true}},
		"low":      {f, Screen{Width: 100, Height: 9}},
		"coloured": {f, Screen{Width: 110, Height: 24, Colour: true, Blocks: true}},
		"first":    {Between(second(1), second(1)), Screen{Width: 110}},
		"down":     {down, Screen{Width: 110}},
		"empty":    {Between(Sample{At: time.Unix(0, 0)}, Sample{At: time.Unix(1, 0)}), Screen{Width: 80, Height: 24}},
	} {
		golden(t, "top-"+name+".txt", func(b *bytes.Buffer) error { _, err := b.WriteString(test.frame.Text(test.screen)); return err })
	}
	golden(t, "top.json", func(b *bytes.Buffer) error { return (&Lines{Out: b, JSON: true}).Show(f) })
}

var sgr = regexp.MustCompile("\x1b\\[[0-9]+m")

// hostile names try to reach the terminal: escape sequences in 7 and 8 bits, line ends, wide and combining characters,
// text that runs from right to left, and no UTF-8 at all.
var hostile = []string{
	"\x1b[2Jgone", "a\nb\rc\td", "\u009b31mred", "\xff\xfe", "世界世界世界世界", "e\u0301e\u0301", "\u202eoduser", "\x00", "\x07bell", strings.Repeat("long", 80), "",
}

// Whatever pods, devices and reasons are called, and whatever the window's size, a frame stays within it.
func TestTopStaysWithinTheWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	text := func() string { return hostile[rng.IntN(len(hostile))] }
	for range 3000 {
		var before, after Sample
		before.At, after.At = time.Unix(100, 0), time.Unix(100, rng.Int64N(3e9))
		for i := range rng.IntN(12) {
			s := datapath.State{
				Limit: datapath.Limit{Pod: datapath.Pod{Namespace: text(), Name: text(), UID: fmt.Sprint(i)}, Rate: bandwidth.Rate(rng.Int64N(1e15)),
					Devices: []datapath.Device{{Index: i, Name: text(), Hook: datapath.Hook(text())}}},
				Backlog: time.Duration(rng.Int64N(1 << rng.IntN(50))),
			}
			before.States = append(before.States, s)
			s.Counters = datapath.Counters{Bytes: rng.Uint64() >> rng.IntN(64), Packets: rng.Uint64(), Dropped: rng.Uint64() >> rng.IntN(64), Sparse: 1}
			after.States = append(after.States, s)
			if rng.IntN(2) == 0 {
				after.Status.Pods = append(after.Status.Pods, enforcer.Verdict{Pod: datapath.Pod{Namespace: text(), Name: text(), UID: fmt.Sprint(i + rng.IntN(9))}, Reason: text()})
			}
		}
		after.Status.Node = text()
		f := Between(before, after)
		f.Problem = text()
		s := Screen{Width: 1 + rng.IntN(200), Height: 1 + rng.IntN(40), Blocks: rng.IntN(2) == 0, Colour: rng.IntN(2) == 0}
		got := f.Text(s)
		bare := sgr.ReplaceAllString(got, "")
		if !s.Colour && bare != got {
			t.Fatalf("colours nobody asked for: %q", got)
		}
		lines := strings.Split(strings.TrimSuffix(bare, "\n"), "\n")
		if len(lines) > s.Height {
			t.Fatalf("%d lines in a window of %d:\n%s", len(lines), s.Height, bare)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > s.Width {
				t.Fatalf("%d characters in a window of %d: %q", n, s.Width, line)
			}
			if undrawn := strings.Map(drawing, line); undrawn != narrow(undrawn) {
				t.Fatalf("line %q lets through what is no plain character", line)
			}
		}
	}
}

// drawing replaces the characters of our own bars.
func drawing(r rune) rune {
	if strings.ContainsRune("█▏▎▍▌▋▊▉░", r) {
		return '#'
	}
	return r
}

func TestListAndStatusShowNoEscapes(t *testing.T) {
	var l List
	st := Status{Problems: hostile}
	for _, h := range hostile {
		l.Rows = append(l.Rows, Row{Pod: datapath.Pod{Namespace: h, Name: h}, Devices: []datapath.Device{{Name: h}}, Reason: h, Mode: "pacing"})
		st.Pods.NotEnforced = append(st.Pods.NotEnforced, Reason{h, h, h})
	}
	var list, status bytes.Buffer
	if err := errors.Join(l.WriteText(&list), st.WriteText(&status)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"list": list.String(), "status": status.String()} {
		if want := strings.ReplaceAll(text, "\n", ""); clean(want) != want {
			t.Errorf("%s lets through what is no plain character: %q", name, text)
		}
	}
	if n := strings.Count(list.String(), "\n"); n != 1+len(hostile)+1+len(hostile)-1 { // the empty reason has no line
		t.Errorf("%d lines: a name has made one of its own:\n%s", n, &list)
	}
}

// shows collects frames and ends after some.
type shows struct {
	frames []Frame
	most   int
}

func (s *shows) Show(f Frame) error {
	s.frames = append(s.frames, f)
	return nil
}

func (s *shows) Wait(context.Context, time.Duration) bool { return len(s.frames) >= s.most }

func TestTopReads(t *testing.T) {
	d := &shows{most: 3}
	if err := Top(t.Context(), fake(true), d, TopOptions{Interval: time.Second, Early: true}); err != nil {
		t.Fatal(err)
	}
	var rates []int64
	for _, f := range d.frames {
		for _, u := range f.Pods {
			if u.Name == "web" {
				rates = append(rates, u.RateBPS)
			}
		}
	}
	if diff := cmp.Diff([]int64{0, 10e6, 10e6}, rates); diff != "" {
		t.Errorf("rates of the frames (-want +got):\n%s", diff)
	}
	d = &shows{most: 3}
	if err := Top(t.Context(), fake(true), d, TopOptions{Once: true, Early: true}); err != nil || len(d.frames) != 1 || d.frames[0].Elapsed != time.Second {
		t.Errorf("once: frames %+v, %v; want one, of two readings", d.frames, err)
	}
}

// A reading that fails is told, with what was read before it; the first one ends top.
func TestTopWhereTheKernelCannotBeRead(t *testing.T) {
	s, n := fake(true), 0
	read := s.Read
	s.Read = func() ([]datapath.State, error) {
		if n++; n == 2 {
			return nil, os.ErrPermission
		}
		return read()
	}
	d := &shows{most: 2}
	if err := Top(t.Context(), s, d, TopOptions{}); err != nil {
		t.Fatal(err)
	}
	if f := d.frames[0]; f.Problem == "" || len(f.Pods) != 5 {
		t.Errorf("frame %+v; want a problem and the pods of before", f)
	}
	if f := d.frames[1]; f.Problem != "" || f.Elapsed <= 0 {
		t.Errorf("frame %+v; want rates again", f)
	}
	n = 1
	if err := Top(t.Context(), s, d, TopOptions{}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error %v; want the kernel's", err)
	}
}

func TestLinesUntilTheEnd(t *testing.T) {
	var b bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Top(ctx, fake(true), &Lines{Out: &b}, TopOptions{Interval: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n\nkubepace top"); n == 0 {
		t.Errorf("no second frame below the first:\n%s", &b)
	}
}

func TestInPlace(t *testing.T) {
	for height, want := range map[int]string{2: "\x1b[H\x1b[Ka\r\n\x1b[Kb", 3: "\x1b[H\x1b[Ka\r\n\x1b[Kb\r\n\x1b[J"} {
		if got := inPlace("a\nb\n", height); got != want {
			t.Errorf("window of %d lines: %q; want %q", height, got, want)
		}
	}
	for keys, want := range map[string]bool{"q": true, "\x03": true, "xQ": true, "x\x1b[A": false, "": false} {
		if ends([]byte(keys)) != want {
			t.Errorf("keys %q end top: %v; want %v", keys, !want, want)
		}
	}
}
