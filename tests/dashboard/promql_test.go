// SPDX-License-Identifier: Apache-2.0

package dashboard

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	none := map[string]string{}
	for expr, want := range map[string]query{
		`up`: {metrics: []selector{{"up", none}}},
		`sum by (a, b) (rate(x_total{c="d", e=~"$f"}[$__rate_interval])) * 8`: {
			metrics: []selector{{"x_total", map[string]string{"c": "=d", "e": "=~$f"}}}, grouping: []string{"a", "b"}},
		`topk(10, a > 0) or count(b == 1) # c`:                      {metrics: []selector{{"a", none}, {"b", none}}},
		`a / on (x) group_left (y) b{l!="m{n}"}`:                    {metrics: []selector{{"a", none}, {"b", map[string]string{"l": "!=m{n}"}}}, grouping: []string{"x", "y"}},
		`histogram_quantile(0.99, sum(rate(h_bucket[5m])) by (le))`: {metrics: []selector{{"h_bucket", none}}, grouping: []string{"le"}},
		`min(a) - time()`:     {metrics: []selector{{"a", none}}},
		`a offset 5m * 1.5e3`: {metrics: []selector{{"a", none}}},
		`bogus(a)`:            {metrics: []selector{{"bogus", none}, {"a", none}}}, // found out as a metric that is not there
	} {
		got, err := parse(expr)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(query{}, selector{})); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", expr, err, diff)
		}
	}
	for _, expr := range []string{``, `1`, `{a="b"}`, `sum(a`, `a)`, `a{b}`, `a{b="c}`, `rate`, "a ; b", `'a'`, `)a(`} {
		if got, err := parse(expr); err == nil {
			t.Errorf("%q: %+v; want an error", expr, got)
		}
	}
}
