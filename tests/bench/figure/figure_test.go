// SPDX-License-Identifier: Apache-2.0

package figure

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
)

// element is what the tests look at.
type element struct {
	name  string
	attrs map[string]string
	text  string
}

// draw writes the picture and parses it: whatever is no XML fails.
func draw(t *testing.T, b Bars) []element {
	t.Helper()
	var text strings.Builder
	if err := b.Write(&text); err != nil {
		t.Fatal(err)
	}
	var elements []element
	decoder := xml.NewDecoder(strings.NewReader(text.String()))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return elements
		}
		if err != nil {
			t.Fatalf("%v in %s", err, text.String())
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attrs: map[string]string{}}
			for _, a := range token.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			elements = append(elements, e)
		case xml.CharData:
			if len(elements) > 0 {
				elements[len(elements)-1].text += strings.TrimSpace(string(token))
			}
		}
	}
}

// bars are the widths of a series' bars.
func bars(t *testing.T, elements []element, colour string) []float64 {
	t.Helper()
	var widths []float64
	for _, e := range elements {
		if e.name != "rect" || e.attrs["fill"] != colour || e.attrs["width"] == "12" { // 12: in the legend
			continue
		}
		w, err := strconv.ParseFloat(e.attrs["width"], 64)
		if err != nil {
			t.Fatal(err)
		}
		widths = append(widths, w)
	}
	return widths
}

func TestBarsAreInProportion(t *testing.T) {
	elements := draw(t, Bars{Series: []string{"a", "b"}, Groups: []Group{{"one", []float64{10, 20}}, {"two", []float64{40, math.NaN()}}}})
	a, b := bars(t, elements, colours[0]), bars(t, elements, colours[1])
	if len(a) != 2 || len(b) != 1 {
		t.Fatalf("bars %v and %v, want two and one: NaN has none", a, b)
	}
	if math.Abs(a[1]/a[0]-4) > 0.01 || math.Abs(b[0]/a[0]-2) > 0.01 {
		t.Errorf("widths %v, %v are not as 10, 40 and 20", a, b)
	}
}

func TestLogarithm(t *testing.T) {
	elements := draw(t, Bars{Log: true, Series: []string{"a"}, Groups: []Group{{"x", []float64{1}}, {"y", []float64{10}}, {"z", []float64{100}}, {"none", []float64{0}}}})
	a := bars(t, elements, colours[0])
	if len(a) != 4 || math.Abs((a[2]-a[1])-(a[1]-a[0])) > 0.2 || a[0] <= 0 || a[3] != 0 {
		t.Errorf("widths %v: each ten times more should be as much wider, the least seen, zero nothing", a)
	}
}

// TestInfiniteIsSaid: a ping that never came back must not look like the quickest.
func TestInfiniteIsSaid(t *testing.T) {
	elements := draw(t, Bars{Log: true, Infinite: "<lost>", Series: []string{"a"}, Groups: []Group{{"x", []float64{1}}, {"y", []float64{math.Inf(1)}}}})
	if a := bars(t, elements, colours[0]); len(a) != 1 {
		t.Errorf("bars %v, want one", a)
	}
	said := 0
	for _, e := range elements {
		if e.name == "text" && e.text == "<lost>" && e.attrs["fill"] == colours[0] {
			said++
		}
	}
	if said != 1 {
		t.Errorf("%d values are said to be lost, want one, in its series' colour", said)
	}
}

func TestBarsStayInThePicture(t *testing.T) {
	for _, log := range []bool{true, false} {
		elements := draw(t, Bars{Log: log, Mark: 100, MarkName: "limit", Series: []string{"a"}, Groups: []Group{{"x", []float64{3}}, {"y", []float64{1e9}}}})
		for _, w := range bars(t, elements, colours[0]) {
			if w < 0 || w > plotWidth {
				t.Errorf("log %v: a bar of %.0f in a plot of %d", log, w, plotWidth)
			}
		}
	}
}

func TestHostileNames(t *testing.T) {
	name := `<script>"&'`
	found := false
	for _, e := range draw(t, Bars{Title: name, Subtitle: name, Unit: name, Mark: 1, MarkName: name, Series: []string{name}, Groups: []Group{{name, []float64{1}}}}) {
		found = found || (e.name == "text" && e.text == name)
		if e.name == "script" {
			t.Error("a name became an element")
		}
	}
	if !found {
		t.Error("the name is not shown")
	}
}

func TestNothingToDraw(t *testing.T) {
	draw(t, Bars{Log: true})
	draw(t, Bars{Series: []string{"a"}, Groups: []Group{{"x", []float64{math.Inf(1)}}}})
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestWriteErrorsAreTold(t *testing.T) {
	if err := (Bars{}).Write(full{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
}
