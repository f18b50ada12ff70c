// SPDX-License-Identifier: Apache-2.0

// Package chart draws rates over time as SVG: a line for each series, its limit as a dashed line. The output
// depends on its input alone and needs no script, font or style sheet from elsewhere.
package chart

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// Point is a mean rate over an interval of time.
type Point struct {
	Start, End    time.Duration
	BitsPerSecond float64
}

// Series is one line and its limit.
type Series struct {
	Name   string
	Note   string // a second line in the legend
	Limit  float64
	Points []Point
}

// Chart is a whole picture.
type Chart struct {
	Title    string
	Subtitle string
	Series   []Series
}

// The picture in SVG units: the plot and the margins around it, the legend at the right.
const (
	width, height = 960, 480
	left, right   = 70, 270
	top, bottom   = 72, 56
	plotWidth     = width - left - right
	plotHeight    = height - top - bottom
)

// colours are told apart also by people who see no red or no green (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}

// scale maps seconds and bits/s to the plot.
type scale struct {
	seconds, bps        float64 // at the far ends of the axes
	secondStep, bpsStep float64
	unit                float64 // bits/s of one unit on the axis
	unitName            string
}

func (s scale) x(seconds float64) float64 { return left + plotWidth*seconds/s.seconds }
func (s scale) y(bps float64) float64     { return top + plotHeight*(1-bps/s.bps) }

// Write draws the chart.
func (c Chart) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	s := c.scale()
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13" fill="#222">`+"\n", width, height, width, height)
	fmt.Fprintf(out, "<title>%s</title>\n", escape(c.Title))
	fmt.Fprintf(out, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(out, `<text x="%d" y="30" font-size="18" font-weight="bold">%s</text>`+"\n", left, escape(c.Title))
	fmt.Fprintf(out, `<text x="%d" y="50" fill="#555">%s</text>`+"\n", left, escape(c.Subtitle))
	writeAxes(out, s)
	for i, series := range c.Series {
		writeSeries(out, s, series, colours[i%len(colours)])
	}
	for _, series := range c.Series { // above the rates, which they meet
		writeLimit(out, s, series.Limit)
	}
	c.writeLegend(out)
	fmt.Fprintln(out, "</svg>")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write chart: %w", err)
	}
	return nil
}

func (c Chart) scale() scale {
	var last time.Duration
	most := 0.0
	for _, series := range c.Series {
		most = math.Max(most, series.Limit)
		for _, p := range series.Points {
			last, most = max(last, p.End), math.Max(most, p.BitsPerSecond)
		}
	}
	if last <= 0 {
		last = time.Second
	}
	if most <= 0 {
		most = 1
	}
	s := scale{seconds: last.Seconds(), unit: 1, unitName: "bit/s"}
	for _, u := range []struct {
		unit float64
		name string
	}{{1e3, "kbit/s"}, {1e6, "Mbit/s"}, {1e9, "Gbit/s"}} {
		if most >= u.unit {
			s.unit, s.unitName = u.unit, u.name
		}
	}
	s.secondStep = step(s.seconds)
	s.bpsStep = step(most)
	s.bps = s.bpsStep * math.Ceil(most*1.02/s.bpsStep)
	return s
}

// step is a round distance between ticks that gives 5 to 11 of them: 1, 2 or 5 times a power of ten.
func step(most float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(most/5)))
	for _, m := range []float64{1, 2, 5} {
		if most/(m*power) <= 10*(1+1e-9) {
			return m * power
		}
	}
	return 10 * power
}

func writeAxes(out io.Writer, s scale) {
	for i := 0; float64(i)*s.bpsStep <= s.bps*1.0001; i++ {
		bps := float64(i) * s.bpsStep
		y := s.y(bps)
		fmt.Fprintf(out, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", left, y, left+plotWidth, y)
		fmt.Fprintf(out, `<text x="%d" y="%.1f" text-anchor="end">%.4g</text>`+"\n", left-8, y+4, bps/s.unit)
	}
	for i := 0; float64(i)*s.secondStep <= s.seconds*1.0001; i++ {
		x := s.x(float64(i) * s.secondStep)
		fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#555"/>`+"\n", x, top+plotHeight, x, top+plotHeight+5)
		fmt.Fprintf(out, `<text x="%.1f" y="%d" text-anchor="middle">%.4g</text>`+"\n", x, top+plotHeight+20, float64(i)*s.secondStep)
	}
	fmt.Fprintf(out, `<path d="M%d,%d V%d H%d" fill="none" stroke="#555"/>`+"\n", left, top, top+plotHeight, left+plotWidth)
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="middle">seconds</text>`+"\n", left+plotWidth/2, height-14)
	fmt.Fprintf(out, `<text transform="translate(20,%d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", top+plotHeight/2, s.unitName)
}

// writeSeries draws each interval as what it is, a level step: the figure is a mean, not a sample.
func writeSeries(out io.Writer, s scale, series Series, colour string) {
	if len(series.Points) == 0 {
		return
	}
	var path strings.Builder
	for i, p := range series.Points {
		verb := "L"
		if i == 0 {
			verb = "M"
		}
		y := s.y(p.BitsPerSecond)
		fmt.Fprintf(&path, "%s%.1f,%.1f H%.1f", verb, s.x(p.Start.Seconds()), y, s.x(p.End.Seconds()))
	}
	fmt.Fprintf(out, `<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`+"\n", path.String(), colour)
}

func writeLimit(out io.Writer, s scale, limit float64) {
	if limit <= 0 {
		return
	}
	fmt.Fprintf(out, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#222" stroke-dasharray="7 5"/>`+"\n", left, s.y(limit), left+plotWidth, s.y(limit))
}

func (c Chart) writeLegend(out io.Writer) {
	const x = left + plotWidth + 24
	y := top + 8
	for i, series := range c.Series {
		colour := colours[i%len(colours)]
		fmt.Fprintf(out, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="3"/>`+"\n", x, y, x+24, y, colour)
		fmt.Fprintf(out, `<text x="%d" y="%d">%s</text>`+"\n", x+32, y+4, escape(series.Name))
		fmt.Fprintf(out, `<text x="%d" y="%d" fill="#555" font-size="12">%s</text>`+"\n", x+32, y+20, escape(series.Note))
		y += 48
	}
	fmt.Fprintf(out, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#222" stroke-dasharray="7 5"/>`+"\n", x, y, x+24, y)
	fmt.Fprintf(out, `<text x="%d" y="%d">the limit</text>`+"\n", x+32, y+4)
}

func escape(text string) string {
	var b strings.Builder
	// EscapeText fails only where its writer does; a strings.Builder never does.
	_ = xml.EscapeText(&b, []byte(text))
	return b.String()
}
