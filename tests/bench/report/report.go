// SPDX-License-Identifier: Apache-2.0

// Package report makes figures, tables and verdicts of the benchmark's results.
package report

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/kubepace/kubepace/tests/bench/figure"
	"github.com/kubepace/kubepace/tests/bench/result"
)

// Report is everything that one run measured.
type Report struct {
	Cases []result.Case
	Run   result.Run
	Costs []result.Costs // of each machine; may be empty
}

// Load reads the results' files. Those with costs may be missing.
func Load(cases, run string, costs ...string) (Report, error) {
	var r Report
	var err error
	if r.Cases, err = load[[]result.Case](cases); err != nil {
		return r, err
	}
	if r.Run, err = load[result.Run](run); err != nil {
		return r, err
	}
	for _, path := range costs {
		c, err := load[result.Costs](path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return r, err
		}
		r.Costs = append(r.Costs, c)
	}
	return r, nil
}

func load[T any](path string) (T, error) {
	file, err := os.Open(path)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("open results: %w", err)
	}
	defer file.Close()
	v, err := result.Read[T](file)
	if err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// PrintVerdicts prints each claim with its figures, and returns whether all were tested and met.
func (r Report) PrintVerdicts(w io.Writer) bool {
	all := true
	fmt.Fprintf(w, "\nVerdicts (%s run, kernel %s):\n", r.Run.Mode, r.Run.Kernel)
	for _, v := range result.Judge(r.Cases, r.Run) {
		fmt.Fprintln(w, v)
		for _, miss := range v.Misses {
			fmt.Fprintln(w, "             missed:", miss)
		}
		all = all && v.Met && v.Tested > 0
	}
	return all
}

// picture is a figure, and how it reads a case.
type picture struct {
	file  string
	bars  figure.Bars
	value func(result.Case) float64
	skip  map[result.Variant]bool
}

func pictures() []picture {
	unlimited := map[result.Variant]bool{result.None: true}
	return []picture{
		{"rate.svg", figure.Bars{
			Title: "Rate accuracy", Unit: "% of the limit, on the wire", Mark: 100, MarkName: "the limit",
			Subtitle: "from 1 s after the start to the end",
		}, func(c result.Case) float64 { return 100 * c.Share() }, unlimited},
		{"ping.svg", figure.Bars{
			Title: "Ping from the saturated pod, p99", Unit: "ms, logarithmic", Log: true, Infinite: "all lost",
			Subtitle: "20 a second beside bulk TCP of the same pod; lost ones are not in it",
		}, pingP99, nil},
		{"first-second.svg", figure.Bars{
			Title: "First second", Unit: "% of one second at the limit, logarithmic", Log: true, Mark: 100, MarkName: "the limit",
			Subtitle: "what was on the wire within 1 s of the transfer's start",
		}, func(c result.Case) float64 { return 100 * float64(c.FirstSecondBits) / float64(c.LimitBps) }, unlimited},
		{"cpu.svg", figure.Bars{
			Title: "Processor time", Unit: "s for each GB on the wire, logarithmic", Log: true,
			Subtitle: "of the whole machine: senders, receiver, meter and ping included",
		}, func(c result.Case) float64 { return c.CPUSecondsPerGB }, nil},
	}
}

func pingP99(c result.Case) float64 {
	if c.PingMs.AllLost() {
		return math.Inf(1)
	}
	return c.PingMs.P99
}

// WriteFigures writes one SVG per figure into a folder.
func (r Report) WriteFigures(folder string) error {
	t := result.NewTable(r.Cases)
	for _, p := range pictures() {
		file, err := os.Create(filepath.Join(folder, p.file))
		if err != nil {
			return fmt.Errorf("write figure: %w", err)
		}
		if err := errors.Join(p.fill(t, r.Run).Write(file), file.Close()); err != nil {
			return fmt.Errorf("write %s: %w", p.file, err)
		}
	}
	return nil
}

func (p picture) fill(t result.Table, run result.Run) figure.Bars {
	b := p.bars
	b.Subtitle += fmt.Sprintf("; Linux %s, %s run", run.Kernel, run.Mode)
	var shown []result.Variant
	for _, v := range result.Variants {
		if !p.skip[v] {
			shown = append(shown, v)
			b.Series = append(b.Series, string(v))
		}
	}
	for _, s := range t.Settings {
		g := figure.Group{Name: s.String()}
		for _, v := range shown {
			value := math.NaN()
			if c, ok := t.Case(s, v); ok {
				value = p.value(c)
			}
			g.Values = append(g.Values, value)
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// UpdateDocs writes anew what stands between the markers of a Markdown file: a quick and a full run have sections of
// their own, so that one does not lose the other. A full run's figures go into a folder beside it, named as the file.
func (r Report) UpdateDocs(path string) error {
	if r.Run.Mode == "chosen" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("update documentation: %w", err)
	}
	updated := string(text)
	sections := map[string]string{r.Run.Mode: r.runSection()}
	if len(r.Costs) > 0 {
		sections["cost"] = r.costSection()
	}
	for name, body := range sections {
		if updated, err = replaceSection(updated, name, body); err != nil {
			return fmt.Errorf("update %s: %w", path, err)
		}
	}
	if err := os.WriteFile(path, []byte(updated), 0o644); err != nil {
		return fmt.Errorf("update documentation: %w", err)
	}
	if r.Run.Mode != "full" {
		return nil
	}
	folder := strings.TrimSuffix(path, filepath.Ext(path))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make a folder for figures: %w", err)
	}
	return r.WriteFigures(folder)
}

// replaceSection puts body between the markers of a name.
func replaceSection(text, name, body string) (string, error) {
	begin, end := "<!-- bench:"+name+":begin -->\n", "<!-- bench:"+name+":end -->"
	before, rest, ok := strings.Cut(text, begin)
	if !ok {
		return "", fmt.Errorf("no marker %q", strings.TrimSpace(begin))
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return "", fmt.Errorf("no marker %q", end)
	}
	return before + begin + body + end + after, nil
}
