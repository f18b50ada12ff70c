// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// Frame is one picture of top: what every limited pod did between two readings of the kernel. The JSON names are for
// scripts and do not change.
type Frame struct {
	At      time.Time     `json:"time"`
	Elapsed time.Duration `json:"-"` // between the readings; 0 where there was one only, and no rate is known
	// Seconds is Elapsed.
	Seconds      float64 `json:"seconds"`
	Node         string  `json:"node,omitempty"`
	AgentRunning bool    `json:"agent_running"`
	Pods         []Use   `json:"pods"` // busiest first, never nil
	// Problem is why the kernel could not be read now; the pods are those of the reading before.
	Problem string `json:"problem,omitempty"`
}

// Use is one pod in a frame.
type Use struct {
	Row
	Use       float64   `json:"use"` // rate now over the limit; above 1 in a burst
	PerSecond PerSecond `json:"per_second"`
}

// PerSecond is what the counters gained, each per second.
type PerSecond struct {
	Packets float64 `json:"packets"`
	Delayed float64 `json:"delayed"`
	Sparse  float64 `json:"sparse"`
	Marked  float64 `json:"marked"`
	Dropped float64 `json:"dropped"`
}

// Sample is what the kernel held at one moment, with what the agent knew then.
type Sample struct {
	At      time.Time
	States  []datapath.State
	Status  enforcer.Status
	Running bool
}

// Sample reads everything once.
func (s Source) Sample() (Sample, error) {
	states, err := s.read()
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{At: s.Now(), States: states}
	if sample.Status, err = s.Status(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Sample{}, err
	}
	sample.Running, err = s.Running()
	return sample, err
}

// Between makes the frame of two samples; before may be after itself.
func Between(before, after Sample) Frame {
	elapsed := after.At.Sub(before.At)
	f := Frame{
		At: after.At, Elapsed: elapsed, Seconds: elapsed.Seconds(), Node: after.Status.Node, AgentRunning: after.Running, Pods: []Use{},
	}
	then := map[string]datapath.Counters{}
	for _, s := range before.States {
		then[s.Pod.UID] = s.Counters
	}
	for _, r := range rows(before.States, after.States, elapsed, after.Status) {
		u := Use{Row: r}
		if r.LimitBPS > 0 {
			u.Use = float64(r.RateBPS) / float64(r.LimitBPS)
		}
		if c, known := then[r.UID]; known && elapsed > 0 && r.Mode != ModeNone {
			u.PerSecond = perSecond(c, r.Counters, elapsed)
		}
		f.Pods = append(f.Pods, u)
	}
	slices.SortStableFunc(f.Pods, func(a, b Use) int { // by name within one percent
		return cmp.Or(cmp.Compare(held(b), held(a)), cmp.Compare(percent(b.Use), percent(a.Use)))
	})
	return f
}

// held puts pods that nothing holds below those whose use is known.
func held(u Use) int {
	if u.Mode == ModeNone {
		return 0
	}
	return 1
}

func percent(use float64) int { return int(math.Round(use * 100)) }

func perSecond(then, now datapath.Counters, elapsed time.Duration) PerSecond {
	per := func(then, now uint64) float64 {
		if now <= then {
			return 0
		}
		return math.Round(float64(now-then)/elapsed.Seconds()*10) / 10
	}
	return PerSecond{
		Packets: per(then.Packets, now.Packets), Delayed: per(then.Delayed, now.Delayed), Sparse: per(then.Sparse, now.Sparse),
		Marked: per(then.Marked, now.Marked), Dropped: per(then.Dropped, now.Dropped),
	}
}

// Display is where top shows its frames.
type Display interface {
	Show(f Frame) error
	// Wait lets so much time pass and shows the last frame anew where the window changed. It returns early, with
	// true, when the user has seen enough.
	Wait(ctx context.Context, d time.Duration) (enough bool)
}

// TopOptions for Top.
type TopOptions struct {
	Interval time.Duration
	Once     bool // one frame
	// Early shows a frame without rates at once, for people who would look at nothing for an interval.
	Early bool
}

// Top reads the kernel every interval and shows what happened since the last time, until ctx ends or the user does.
// An error of the first reading ends it; later ones are shown, and the next reading may do better.
func Top(ctx context.Context, s Source, d Display, o TopOptions) error {
	before, err := s.Sample()
	if err != nil {
		return err
	}
	if o.Early && !o.Once {
		if err := d.Show(Between(before, before)); err != nil {
			return err
		}
	}
	for !d.Wait(ctx, o.Interval) && ctx.Err() == nil {
		after, err := s.Sample()
		if err != nil {
			after = before
		}
		f := Between(before, after)
		if err != nil {
			f.Problem = err.Error()
		}
		if err := d.Show(f); err != nil || o.Once {
			return err
		}
		before = after
	}
	return nil
}

// Lines is a Display that writes frames one below the other: as text, or as one line of JSON each.
type Lines struct {
	Out    io.Writer
	JSON   bool
	Screen Screen

	shown bool
}

var _ Display = (*Lines)(nil)

// Show implements Display.
func (l *Lines) Show(f Frame) error {
	if l.JSON {
		return json.NewEncoder(l.Out).Encode(f)
	}
	text := f.Text(l.Screen)
	if l.shown {
		text = "\n" + text
	}
	l.shown = true
	_, err := io.WriteString(l.Out, text)
	return err
}

// Wait implements Display.
func (*Lines) Wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(d):
		return false
	}
}
