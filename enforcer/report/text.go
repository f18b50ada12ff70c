// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/kubepace/kubepace/enforcer/datapath"
)

// WriteJSON writes the rows as an array; without pods it is [].
func (l List) WriteJSON(w io.Writer) error { return writeJSON(w, l.Rows) }

// WriteJSON writes the status as one object.
func (st Status) WriteJSON(w io.Writer) error { return writeJSON(w, st) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// WriteText writes a table for people, and below it why limits are not enforced.
func (l List) WriteText(w io.Writer) error {
	if len(l.Rows) == 0 {
		_, err := fmt.Fprintln(w, "No pod on this node has an egress limit.")
		return err
	}
	t := newTable(w, "POD", "DEVICE", "LIMIT", "MODE", "RATE NOW", "DELAYED", "MARKED", "DROPPED")
	for _, r := range l.Rows {
		c := r.Counters
		t.row(clean(r.String()), clean(deviceNames(r.Devices)), dash(r.Limit), r.Mode, Rate(r.RateBPS), count(c.Delayed), count(c.Marked), count(c.Dropped))
	}
	if err := t.flush(); err != nil {
		return err
	}
	first := true
	for _, r := range l.Rows {
		if r.Reason == "" {
			continue
		}
		if first {
			fmt.Fprintln(w)
			first = false
		}
		if _, err := fmt.Fprintf(w, "%s: %s: %s\n", clean(r.String()), r.standing(), clean(r.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// standing is what a reason explains.
func (r Row) standing() string {
	switch {
	case r.Enforced:
		return "note"
	case r.Mode != ModeNone:
		return "enforced in part"
	}
	return "not enforced"
}

// WriteText writes the status for people. The first line has the form of Cilium's.
func (st Status) WriteText(w io.Writer) error {
	var b strings.Builder
	names := make([]string, len(st.Exits))
	for i, d := range st.Exits {
		names[i] = clean(d.Name)
	}
	fmt.Fprintf(&b, "Mode: %s (%s) [%s] [%s]\n", st.Mode, clean(st.ModeReason), dash(st.CongestionControl), dash(strings.Join(names, ", ")))
	fmt.Fprintf(&b, "Agent: %s\n", st.Agent)
	fmt.Fprintf(&b, "Kernel: %s\n", st.Kernel)
	fmt.Fprintf(&b, "Pods: %d limited, %d enforced\n", st.Pods.Limited, st.Pods.Enforced)
	for _, r := range st.Pods.NotEnforced {
		fmt.Fprintf(&b, "  %s/%s is not enforced: %s\n", clean(r.Namespace), clean(r.Pod), clean(r.Reason))
	}
	if st.Pins.Present {
		fmt.Fprintf(&b, "Pins: %s, %d pods on %d devices\n", st.Pins.Path, st.Pins.Pods, st.Pins.Devices)
	} else {
		fmt.Fprintf(&b, "Pins: none under %s\n", st.Pins.Path)
	}
	for _, c := range st.Sysctls {
		fmt.Fprintf(&b, "Sysctl %s: %s, set by kubepace (--bbr); was %s\n", c.Name, c.Set, c.Before)
	}
	if len(st.Exits) > 0 {
		b.WriteString("Exit devices:\n")
		t := newTable(&b, "  DEVICE", "QDISC", "PACED")
		for _, d := range st.Exits {
			t.row("  "+clean(d.Name), clean(d.Qdisc), clean(yes(d.Paced, d.Reason)))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for i, p := range st.Problems {
		if i == 0 {
			b.WriteString("Problems:\n")
		}
		fmt.Fprintf(&b, "  %s\n", clean(p))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (a Agent) String() string {
	switch {
	case !a.Running && a.Started.IsZero():
		return "not running"
	case !a.Running:
		return fmt.Sprintf("not running (limits stay in force); the last one was %s, pods from %s", a.Version, a.Source)
	}
	text := fmt.Sprintf("running since %s, %s, pods from %s", a.Started.UTC().Format("2006-01-02 15:04:05 UTC"), a.Version, a.Source)
	if !a.Synced {
		text += ", which is not complete yet"
	}
	return text
}

func (k Kernels) String() string {
	if k.Error != "" {
		return "unknown: " + k.Error
	}
	return fmt.Sprintf("%s; tcx: %s; departure times: %s; fq: %s", k.Features.Kernel, yes(k.TCX, ""), yes(k.Stamp, ""), yes(k.Fq, k.FqReason))
}

func yes(is bool, reason string) string {
	switch {
	case is:
		return "yes"
	case reason != "":
		return "no, " + reason
	}
	return "no"
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

// deviceNames marks devices that the program is not attached to.
func deviceNames(devices []datapath.Device) string {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.Name
		if d.Name == "" {
			names[i] = "#" + strconv.Itoa(d.Index)
		}
		if d.Hook == datapath.HookNone {
			names[i] += "(detached)"
		}
	}
	return dash(strings.Join(names, ","))
}

// Rate writes bits per second in three digits, such as "9.51M" or "0".
func Rate(bps int64) string {
	value, suffix := float64(bps), ""
	for _, s := range []string{"k", "M", "G", "T", "P"} {
		// Below the rounding to four digits: 999.6k is written as 1M.
		if value < 999.5 {
			break
		}
		value, suffix = value/1000, s
	}
	if suffix == "" {
		return strconv.FormatInt(bps, 10)
	}
	text := strconv.FormatFloat(value, 'f', decimals(value), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text + suffix
}

func decimals(value float64) int {
	switch {
	case value < 9.995:
		return 2
	case value < 99.95:
		return 1
	}
	return 0
}

// table aligns columns and leaves no trailing blanks.
type table struct {
	out  io.Writer
	text strings.Builder
	tab  *tabwriter.Writer
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{out: w}
	t.tab = tabwriter.NewWriter(&t.text, 0, 0, 2, ' ', 0)
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) { fmt.Fprintln(t.tab, strings.Join(cells, "\t")) }

func (t *table) flush() error {
	if err := t.tab.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.text.String()) {
		if _, err := fmt.Fprintln(t.out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}
