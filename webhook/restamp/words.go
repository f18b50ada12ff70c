// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Reasons of our events.
const (
	reasonPodChanged  = "EgressLimitChanged"
	reasonPodRefused  = "EgressLimitRefused"
	reasonPodRecreate = "EgressRecreatePod"
	reasonPodHeld     = "EgressLimitHeld"
	reasonNsPolicy    = "EgressPolicyChanged"
	reasonNsProblem   = "EgressPolicyProblem"
	reasonNsStamped   = "EgressLimitsChanged"
	reasonNsUncounted = "EgressUncounted"
)

// describePolicy is one line about what holds in a namespace.
func describePolicy(p policy.Policy) string {
	var parts []string
	if p.Default.Rate != 0 {
		parts = append(parts, fmt.Sprintf("default %v (%s)", p.Default.Rate, p.Default.Setting))
	}
	if len(p.Mins) > 0 {
		parts = append(parts, fmt.Sprintf("minimum %v (%s)", p.Mins[0].Rate, p.Mins[0].Setting))
	}
	if len(p.Maxes) > 0 {
		word := "maximum"
		if p.OverMax == bandwidth.OverMaxDeny {
			word = "maximum, denied above,"
		}
		parts = append(parts, fmt.Sprintf("%s %v (%s)", word, p.Maxes[0].Rate, p.Maxes[0].Setting))
	}
	if len(parts) == 0 {
		parts = append(parts, "no limits")
	}
	if p.Counted() {
		parts = append(parts, "counted by "+strings.Join(p.CountedBy, ", "))
	}
	if p.Mode != bandwidth.ModeEnforce {
		parts = append(parts, "mode "+p.Mode)
	}
	return strings.Join(parts, ", ")
}

// describeChange says what became of a pod's limit, and why. The mark that it carries tells the policy.
func describeChange(p policy.Policy, from, to string, d policy.Decision) string {
	text := fmt.Sprintf("egress limit %s → %s", cmp.Or(from, "none"), cmp.Or(to, "none"))
	switch d.Source {
	case bandwidth.SourceCapped:
		text += fmt.Sprintf(": %s asked, %s's maximum is %v (%s)", d.Requested, p.Maxes[0].Owner, p.Maxes[0].Rate, p.Maxes[0].Setting)
	case bandwidth.SourceNamespaceDefault, bandwidth.SourceClusterDefault:
		text += fmt.Sprintf(": %s's default (%s)", p.Default.Owner, p.Default.Setting)
	case bandwidth.SourcePod:
		text += ": as the pod asks"
	}
	return text
}

// describeRecreate says why a running pod has less than the policy would give it today.
func describeRecreate(d policy.Decision) string {
	may := fmt.Sprintf("may have an egress limit of %v today", d.Allowed)
	if d.Allowed == 0 {
		may = "needs no egress limit today"
	}
	return fmt.Sprintf("%s, and keeps at most %s: recreate the pod", may, d.Ceiling)
}

// tally counts what became of a namespace's pods.
type tally map[string]int

// String lists the counts in a fixed order.
func (t tally) String() string {
	var parts []string
	for _, w := range []struct{ key, text string }{
		{"lowered", "lowered"}, {"raised", "raised"}, {"limited", "newly limited"}, {"lifted", "no longer limited"}, {"rewritten", "rewritten"},
		{string(stamp), "get another limit"}, {string(refused), "would be refused today and keep what they have"},
		{string(recreate), "must be recreated to get more"}, {string(held), "keep what they have until the settings can be read"},
	} {
		if n := t[w.key]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, w.text))
		}
	}
	return strings.Join(parts, ", ")
}
