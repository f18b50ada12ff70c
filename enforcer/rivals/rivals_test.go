// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	tbf := func(name string) *Redirect { return &Redirect{Device: name, Type: "ifb", Qdisc: "tbf"} }
	cilium := Cilium{Throttle: true, AtExit: true, Limited: true}
	with := func(change func(c *Cilium)) Cilium {
		c := cilium
		change(&c)
		return c
	}
	lxc := []string{"cil_from_container"}
	for name, test := range map[string]struct {
		facts     Facts
		who       string // "" for nobody
		redirects bool
	}{
		"nothing":               {Facts{}, "", false},
		"bandwidth plugin":      {Facts{Redirect: tbf("bwp5f3a")}, "the CNI bandwidth plugin", true},
		"Calico":                {Facts{Redirect: tbf("bwcali5f3a")}, "Calico's QoS", true},
		"own script":            {Facts{Redirect: &Redirect{"ifb0", "ifb", "htb"}}, "somebody", true},
		"redirect, not limited": {Facts{Redirect: &Redirect{"ifb0", "ifb", "fq_codel"}}, "", false},
		"policer":               {Facts{Policer: "u32 with police"}, "a policer", false},
		"Cilium":                {Facts{Programs: lxc, Cilium: cilium}, "Cilium's bandwidth manager", false},
		"Cilium before 1.12":    {Facts{Programs: []string{"x", "from-container-lxc5"}, Cilium: cilium}, "Cilium's bandwidth manager", false},
		"Cilium, maps unread":   {Facts{Programs: lxc, Cilium: with(func(c *Cilium) { c.Limited, c.Unknown = false, true })}, "Cilium's bandwidth manager", false},
		"Cilium without limit":  {Facts{Programs: lxc, Cilium: with(func(c *Cilium) { c.Limited = false })}, "", false},
		"Cilium without bwm":    {Facts{Programs: lxc, Cilium: with(func(c *Cilium) { c.Throttle = false })}, "", false},
		"Cilium not at exits":   {Facts{Programs: lxc, Cilium: with(func(c *Cilium) { c.AtExit = false })}, "", false},
		"another CNI's device":  {Facts{Programs: []string{"kubepace_egress"}, Cilium: cilium}, "", false},
	} {
		test.facts.Device = "veth7"
		got, ok := Judge(test.facts)
		if ok != (test.who != "") || got.Who != test.who || got.Redirects != test.redirects {
			t.Errorf("%s: %+v, %v; want %q, redirects %v", name, got, ok, test.who, test.redirects)
		}
		if ok && (got.Device != "veth7" || !strings.Contains(got.String(), "veth7") || !strings.HasPrefix(got.String(), test.who)) {
			t.Errorf("%s: %q; want it to name device and limiter", name, got)
		}
	}
}

func TestPolicy(t *testing.T) {
	for policy, want := range map[Policy]bool{StandDown: true, TakeOver: true, "": false, "fight": false} {
		if policy.Valid() != want {
			t.Errorf("%q valid: %v", policy, !want)
		}
	}
}
