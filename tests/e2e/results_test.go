// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"text/tabwriter"
)

// row is one line of the table at the end.
type row struct {
	step, what   string
	asked, limit string  // empty: does not apply
	mbps         float64 // at the client, payload; 0: not measured
	note         string
}

type results struct{ rows []row }

func (r *results) add(line row) {
	r.rows = append(r.rows, line)
	say("  %s: %s %s%s", line.step, line.what, line.rate(), line.note)
}

func (l row) rate() string {
	if l.mbps == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f Mbit/s ", l.mbps)
}

// write prints the table and leaves it in e2e.txt.
func (r *results) write(t *testing.T) {
	t.Helper()
	if len(r.rows) == 0 {
		return
	}
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "STEP\tWHAT\tASKED\tLIMIT\tMbit/s AT THE CLIENT\tNOTE")
	for _, l := range r.rows {
		rate := ""
		if l.mbps > 0 {
			rate = fmt.Sprintf("%.2f", l.mbps)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", l.step, l.what, l.asked, l.limit, rate, l.note)
	}
	if err := table.Flush(); err != nil {
		t.Error(err)
	}
	fmt.Printf("\n%s\n", out.String())
	if err := os.WriteFile(filepath.Join(os.Getenv(envOut), "e2e.txt"), out.Bytes(), 0o644); err != nil {
		t.Error(err)
	}
}
