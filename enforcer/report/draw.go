// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Screen is what a frame is drawn for.
type Screen struct {
	Width, Height int  // in characters; 0 for as much as it takes
	Colour        bool // SGR sequences
	Blocks        bool // bars of block characters, not of ASCII
}

// SGR parameters.
const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (s Screen) paint(sgr, text string) string {
	if !s.Colour || sgr == plain || text == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

// column of the table. Those with a high rank are left out first where the window is narrow.
type column struct {
	title string
	width int
	left  bool // aligned
	rank  int
	cell  func(u Use) string
	sgr   func(u Use) string // may be nil
}

const (
	leastBar, mostBar = 8, 24
	leastName         = 12
	gap               = "  "
)

// Text draws the frame within the screen, each line ended by a newline. Nothing in it comes from strangers unchanged.
func (f Frame) Text(s Screen) string {
	lines := []string{f.title(s), f.summary(s)}
	if f.Problem != "" {
		lines = append(lines, s.paint(red, s.fit("not read now, what is below is older: "+narrow(f.Problem))))
	}
	lines = append(lines, "")
	if len(f.Pods) == 0 {
		lines = append(lines, s.fit("No pod on this node has an egress limit."))
	} else {
		lines = append(lines, f.table(s, s.Height-len(lines))...)
	}
	if s.Height > 0 && len(lines) > s.Height {
		lines = lines[:s.Height]
	}
	return strings.Join(lines, "\n") + "\n"
}

func (s Screen) fit(text string) string {
	if s.Width <= 0 {
		return text
	}
	return fit(text, s.Width)
}

func (f Frame) title(s Screen) string {
	text := "kubepace top"
	if f.Node != "" {
		text += "  " + narrow(f.Node)
	}
	text += "  " + f.At.UTC().Format("15:04:05 UTC")
	if f.Elapsed > 0 {
		text += "  over " + f.Elapsed.Round(10*time.Millisecond).String()
	}
	if !f.AgentRunning {
		return s.paint(bold, s.fit(text+"  agent down, limits stay in force"))
	}
	return s.paint(bold, s.fit(text))
}

func (f Frame) summary(s Screen) string {
	var now, limits int64
	without := 0
	for _, u := range f.Pods {
		if now += u.RateBPS; u.Mode != ModeNone {
			limits += u.LimitBPS
		}
		if !u.Enforced {
			without++
		}
	}
	text := fmt.Sprintf("%d pods limited, %d enforced; sending %s of %s", len(f.Pods), len(f.Pods)-without, f.rate(now), Rate(limits))
	sgr := plain
	if without > 0 {
		sgr = red
	}
	return s.paint(sgr, s.fit(text))
}

// rate of a frame whose rates are not known yet is a dash.
func (f Frame) rate(bps int64) string {
	if f.Elapsed <= 0 {
		return "-"
	}
	return Rate(bps)
}

// table has at most so many lines, where height is above 0: the busiest pods, how many are left out, and below them
// why limits are not enforced, as far as there is room.
func (f Frame) table(s Screen, height int) []string {
	columns := f.columns(s)
	lines := []string{s.paint(dim, header(columns))}
	room := len(f.Pods)
	if s.Height > 0 && height < len(f.Pods)+1 {
		room = max(0, height-2)
	}
	for _, u := range f.Pods[:room] {
		lines = append(lines, f.line(s, columns, u))
	}
	if rest := f.Pods[room:]; len(rest) > 0 {
		return append(lines, s.paint(dim, s.fit(leftOut(rest))))
	}
	for i, note := range f.notes() {
		if i == 0 {
			lines = append(lines, "")
		}
		lines = append(lines, s.fit(note))
	}
	return lines
}

func leftOut(rest []Use) string {
	without := 0
	for _, u := range rest {
		if !u.Enforced {
			without++
		}
	}
	text := fmt.Sprintf("… %d more", len(rest))
	if without > 0 {
		text += fmt.Sprintf(", %d of them not enforced", without)
	}
	return text
}

// notes are the reasons of pods whose line has no room for them.
func (f Frame) notes() []string {
	var notes []string
	for _, u := range f.Pods {
		if u.Reason != "" && u.Mode != ModeNone {
			notes = append(notes, narrow(u.String()+": "+u.standing()+": "+u.Reason))
		}
	}
	return notes
}

// columns that fit, the name's and the bar's as wide as the others leave room.
func (f Frame) columns(s Screen) []column {
	name, device := len("POD"), len("DEVICE")
	for _, u := range f.Pods {
		name = max(name, utf8.RuneCountInString(narrow(u.String())))
		device = max(device, utf8.RuneCountInString(narrow(deviceNames(u.Devices))))
	}
	columns := f.allColumns(s, name, min(device, 24))
	if s.Width <= 0 {
		return columns
	}
	columns[0].width = min(name, leastName)
	total := func() (sum int) {
		for i, c := range columns {
			if sum += c.width; i > 0 {
				sum += len(gap)
			}
		}
		return sum
	}
	for total() > s.Width {
		last := 0
		for i, c := range columns {
			if c.rank > columns[last].rank {
				last = i
			}
		}
		if last == 0 {
			break
		}
		columns = append(columns[:last], columns[last+1:]...)
	}
	columns[0].width = min(name, columns[0].width+s.Width-total())
	for i := range columns {
		if columns[i].title == "USE" {
			columns[i].width = min(mostBar, columns[i].width+max(0, s.Width-total()))
		}
	}
	return columns
}

func (f Frame) allColumns(s Screen, name, device int) []column {
	bar := mostBar
	if s.Width > 0 {
		bar = leastBar
	}
	number := func(title string, rank int, sgr string, value func(PerSecond) float64) column {
		colour := func(u Use) string {
			if value(u.PerSecond) > 0 {
				return sgr
			}
			return plain
		}
		return column{title: title, width: len(title), rank: rank, sgr: colour, cell: func(u Use) string {
			if f.Elapsed <= 0 {
				return "-"
			}
			return Rate(int64(math.Ceil(value(u.PerSecond))))
		}}
	}
	return []column{
		{title: "POD", width: name, left: true, cell: func(u Use) string { return narrow(u.String()) }},
		{title: "LIMIT", width: 6, rank: 2, cell: func(u Use) string { return limit(u.Row) }},
		{title: "NOW", width: 5, rank: 1, cell: func(u Use) string { return f.rate(u.RateBPS) }},
		{title: "USE", width: bar, left: true, rank: 4, sgr: useColour},
		{title: "", width: 4, rank: 3, sgr: useColour, cell: func(u Use) string {
			if f.Elapsed <= 0 {
				return "-"
			}
			return fmt.Sprintf("%d%%", min(percent(u.Use), 999))
		}},
		{title: "BACKLOG", width: 7, rank: 5, cell: func(u Use) string { return backlog(u.BacklogMs) }},
		number("DROPPED/s", 6, red, func(p PerSecond) float64 { return p.Dropped }),
		number("MARKED/s", 8, yellow, func(p PerSecond) float64 { return p.Marked }),
		number("DELAYED/s", 7, plain, func(p PerSecond) float64 { return p.Delayed }),
		number("SPARSE/s", 9, plain, func(p PerSecond) float64 { return p.Sparse }),
		{title: "MODE", width: 8, left: true, rank: 10, cell: func(u Use) string { return u.Mode }},
		{title: "DEVICE", width: device, left: true, rank: 11, cell: func(u Use) string { return narrow(deviceNames(u.Devices)) }},
	}
}

func header(columns []column) string {
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteString(gap)
		}
		b.WriteString(c.align(c.title))
	}
	return strings.TrimRight(b.String(), " ")
}

// line is a pod's; one that nothing holds has its reason in place of figures.
func (f Frame) line(s Screen, columns []column, u Use) string {
	var b strings.Builder
	used, blank := 0, ""
	for i, c := range columns {
		if i > 0 {
			used, blank = used+len(gap), blank+gap
		}
		if u.Mode == ModeNone && i > 0 && c.title != "LIMIT" {
			reason := u.standing() + ": " + narrow(u.Reason)
			if s.Width > 0 {
				reason = fit(reason, s.Width-used)
			}
			return b.String() + blank + s.paint(red, reason)
		}
		sgr := plain
		if c.sgr != nil {
			sgr = c.sgr(u)
		}
		var text string
		if c.title == "USE" {
			text = s.bar(u.Use, c.width)
		} else {
			text = c.align(c.cell(u))
		}
		bare := strings.TrimRight(text, " ")
		if bare != "" {
			b.WriteString(blank + s.paint(sgr, bare))
			blank = ""
		}
		blank += text[len(bare):]
		used += c.width
	}
	return b.String()
}

func (c column) align(text string) string {
	text = fit(text, c.width)
	pad := strings.Repeat(" ", max(0, c.width-utf8.RuneCountInString(text)))
	if c.left {
		return text + pad
	}
	return pad + text
}

// useColour: a pod at its limit is no fault; one that loses packets there may want a higher one.
func useColour(u Use) string {
	switch {
	case u.PerSecond.Dropped > 0:
		return red
	case u.Use >= 0.9:
		return yellow
	}
	return green
}

// bar is full at the limit.
func (s Screen) bar(use float64, width int) string {
	use = min(max(use, 0), 1)
	if !s.Blocks {
		full := int(math.Round(use * float64(width)))
		return strings.Repeat("#", full) + strings.Repeat(".", width-full)
	}
	eighths := int(math.Round(use * float64(width) * 8))
	full, part := eighths/8, eighths%8
	text := strings.Repeat("█", full)
	if part > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[part-1])
		full++
	}
	return text + strings.Repeat("░", width-full)
}

// limit in few characters: rounded where its exact text is longer.
func limit(r Row) string {
	if len(r.Limit) > len("1500k") {
		return Rate(r.LimitBPS)
	}
	return dash(r.Limit)
}

// backlog of at most seven characters.
func backlog(ms float64) string {
	switch {
	case ms == 0:
		return "0"
	case ms >= 9999.5:
		return fmt.Sprintf("%.0f s", ms/1000)
	case ms >= 999.5:
		return fmt.Sprintf("%.2f s", ms/1000)
	case ms >= 99.95:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}
