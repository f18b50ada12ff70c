// SPDX-License-Identifier: Apache-2.0

// Package figure draws groups of horizontal bars as SVG, on a linear or a logarithmic scale. The output depends on
// its input alone and needs no script, font or style sheet from elsewhere.
package figure

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// Bars is a whole picture: for each group one bar of each series.
type Bars struct {
	Title, Subtitle string
	Unit            string // of the axis
	Log             bool   // logarithmic; values at or below zero are drawn as nothing
	Mark            float64
	MarkName        string // a dashed line at Mark; none if empty
	Infinite        string // written instead of a bar where a value is +Inf; nothing if empty
	Series          []string
	Groups          []Group
}

// Group has one value for each series; NaN where there is none, +Inf where no bar is long enough.
type Group struct {
	Name   string
	Values []float64
}

// The picture in SVG units.
const (
	width         = 960
	left, right   = 220, 90
	top, bottom   = 96, 52
	plotWidth     = width - left - right
	bar, groupGap = 11, 12
)

// colours are told apart also by people who see no red or no green (Okabe and Ito).
var colours = []string{"#999999", "#0072b2", "#d55e00", "#cc79a7", "#009e73", "#e69f00"}

// axis maps values to the plot.
type axis struct {
	low, high float64 // at the ends; low is 0 for a linear axis
	log       bool
}

func (a axis) x(v float64) float64 {
	if a.log {
		if v <= a.low {
			return left
		}
		return left + plotWidth*math.Log(v/a.low)/math.Log(a.high/a.low)
	}
	return left + plotWidth*math.Max(v, 0)/a.high
}

// Write draws the picture.
func (b Bars) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	a := b.axis()
	groupHeight := len(b.Series)*bar + groupGap
	plotHeight := len(b.Groups) * groupHeight
	height := top + plotHeight + bottom
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n", width, height, width, height)
	fmt.Fprintf(out, "<title>%s</title>\n", escape(b.Title))
	fmt.Fprintf(out, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(out, `<text x="20" y="28" font-size="18" font-weight="bold">%s</text>`+"\n", escape(b.Title))
	fmt.Fprintf(out, `<text x="20" y="47" fill="#555">%s</text>`+"\n", escape(b.Subtitle))
	b.writeLegend(out)
	b.writeTicks(out, a, plotHeight)
	for i, g := range b.Groups {
		b.writeGroup(out, a, g, top+i*groupHeight+groupGap/2)
	}
	b.writeMark(out, a, plotHeight)
	fmt.Fprintln(out, "</svg>")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write figure: %w", err)
	}
	return nil
}

func (b Bars) axis() axis {
	low, high := math.Inf(1), b.Mark
	for _, g := range b.Groups {
		for _, v := range g.Values {
			if v > 0 && !math.IsInf(v, 0) {
				low, high = math.Min(low, v), math.Max(high, v)
			}
		}
	}
	if high <= 0 {
		return axis{low: 0.1, high: 1, log: b.Log}
	}
	if !b.Log {
		return axis{high: high * 1.02}
	}
	// Whole powers of ten, and a little below the least value, so that its bar is seen.
	low = math.Pow(10, math.Floor(math.Log10(math.Min(low, high)*0.9)))
	return axis{low: low, high: math.Max(high*1.1, low*10), log: true}
}

// ticks are round values on the axis.
func (a axis) ticks() []float64 {
	var ticks []float64
	if a.log {
		for v := a.low; v <= a.high*1.0001; v *= 10 {
			ticks = append(ticks, v)
		}
		return ticks
	}
	power := math.Pow(10, math.Floor(math.Log10(a.high/5)))
	step := 10 * power
	for _, m := range []float64{5, 2, 1} {
		if a.high/(m*power) <= 10 {
			step = m * power
		}
	}
	for i := 0; float64(i)*step <= a.high; i++ {
		ticks = append(ticks, float64(i)*step)
	}
	return ticks
}

func (b Bars) writeTicks(out io.Writer, a axis, plotHeight int) {
	for _, v := range a.ticks() {
		x := a.x(v)
		fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`+"\n", x, top, x, top+plotHeight)
		fmt.Fprintf(out, `<text x="%.1f" y="%d" text-anchor="middle">%.4g</text>`+"\n", x, top+plotHeight+18, v)
	}
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+plotWidth/2, top+plotHeight+38, escape(b.Unit))
}

func (b Bars) writeGroup(out io.Writer, a axis, g Group, y int) {
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-10, y+len(g.Values)*bar/2+4, escape(g.Name))
	for i, v := range g.Values {
		at := y + i*bar
		if math.IsInf(v, 1) && b.Infinite != "" {
			writeValue(out, left, at, colours[i%len(colours)], escape(b.Infinite))
			continue
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		end := a.x(v)
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, at+1, end-left, bar-2, colours[i%len(colours)])
		writeValue(out, end, at, "#555", fmt.Sprintf("%.4g", v))
	}
}

// writeValue writes text right of a bar's end.
func writeValue(out io.Writer, end float64, at int, colour, text string) {
	fmt.Fprintf(out, `<text x="%.1f" y="%d" font-size="10" fill="%s">%s</text>`+"\n", end+4, at+bar-2, colour, text)
}

func (b Bars) writeLegend(out io.Writer) {
	x := 20
	for i, name := range b.Series {
		fmt.Fprintf(out, `<rect x="%d" y="62" width="12" height="12" fill="%s"/>`+"\n", x, colours[i%len(colours)])
		fmt.Fprintf(out, `<text x="%d" y="73">%s</text>`+"\n", x+17, escape(name))
		x += 40 + 7*len(name)
	}
	if b.MarkName != "" {
		fmt.Fprintf(out, `<line x1="%d" y1="68" x2="%d" y2="68" stroke="#222" stroke-dasharray="5 4"/>`+"\n", x, x+20)
		fmt.Fprintf(out, `<text x="%d" y="73">%s</text>`+"\n", x+26, escape(b.MarkName))
	}
}

func (b Bars) writeMark(out io.Writer, a axis, plotHeight int) {
	if b.MarkName == "" || b.Mark <= 0 {
		return
	}
	x := a.x(b.Mark)
	fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#222" stroke-dasharray="5 4"/>`+"\n", x, top, x, top+plotHeight)
}

func escape(text string) string {
	var b strings.Builder
	// EscapeText fails only where its writer does; a strings.Builder never does.
	_ = xml.EscapeText(&b, []byte(text))
	return b.String()
}
