// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestMatchList(t *testing.T) {
	const reference = `{"namespace":"team-a","pod":"reference","limit_bps":10000000,"mode":"pacing","enforced":true}`
	const unasked = `{"namespace":"team-b","pod":"unasked","limit_bps":25000000,"mode":"policing","enforced":true}`
	const greedy = `{"namespace":"team-c","pod":"greedy","limit_bps":50000000,"mode":"none","enforced":false,"reason":"no device"}`
	for name, tc := range map[string]struct {
		list string
		want string // part of the error; empty for none
	}{
		"all":          {"[" + reference + "," + unasked + "," + strings.Replace(greedy, "false", "true", 1) + "]", ""},
		"one not held": {"[" + reference + "," + unasked + "," + greedy + "]", "not enforced: team-c/greedy (no device)"},
		"one missing":  {"[" + unasked + "," + strings.Replace(greedy, "false", "true", 1) + "]", "not enforced: team-a/reference"},
		"none":         {"[]", "team-a/reference, team-b/unasked, team-c/greedy"},
		"no list":      {"No agent", "read kubepace-enforcer list"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDemo(options{})
			for _, p := range d.pods {
				p.Refused = p.WantAdmitted == ""
			}
			err := d.matchList([]byte(tc.list))
			switch {
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("matchList: %v; want %q", err, tc.want)
			case tc.want == "" && err != nil:
				t.Errorf("matchList: %v", err)
			case tc.want == "" && (d.pods[0].LimitBPS != 10_000_000 || d.pods[0].Mode != "pacing" || d.pods[1].Mode != "policing"):
				t.Errorf("pods %+v, %+v", d.pods[0].Pod, d.pods[1].Pod)
			}
		})
	}
}
