// SPDX-License-Identifier: Apache-2.0

package result

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// reasons say a source in words.
var reasons = map[string]string{
	"pod":               "as asked",
	"namespace-default": "the namespace's default",
	"cluster-default":   "the cluster's default",
	"capped":            "capped at the namespace's maximum",
}

// WriteTable writes the table that people read: one line per pod, and below it the words of each refusal.
func (r Report) WriteTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "POD\tASKED\tADMITTED\tWHY\tPAYLOAD Mbit/s\tWIRE Mbit/s\tOFF LIMIT\tMODE")
	for _, p := range r.Pods {
		name := p.Namespace + "/" + p.Pod
		if p.Refused {
			fmt.Fprintf(tw, "%s\t%s\trefused\tnot a rate\t-\t-\t-\t-\n", name, orNone(p.Asked))
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%+.1f %%\t%s\n",
			name, orNone(p.Asked), p.Admitted, why(p.Source), mbit(p.MeasuredBPS), mbit(p.WireBPS), 100*p.Deviation(), p.Mode)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func orNone(asked string) string {
	if asked == "" {
		return "(none)"
	}
	return fmt.Sprintf("%q", asked)
}

func why(source string) string {
	if words, ok := reasons[source]; ok {
		return words
	}
	return source
}
