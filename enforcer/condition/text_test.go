// SPDX-License-Identifier: Apache-2.0

package condition

import (
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

func TestOf(t *testing.T) {
	const limit = 10 * bandwidth.Megabit
	veth := []datapath.Device{{Name: "veth12ab"}}
	for name, c := range map[string]struct {
		verdict enforcer.Verdict
		status  corev1.ConditionStatus
		message string
	}{
		"pacing": {enforcer.Verdict{Enforced: true, Limit: limit, Mode: datapath.ModePacing, Devices: veth, Code: enforcer.CodePacing},
			corev1.ConditionTrue, "10M on veth12ab by pacing; local delivery policed"},
		"policing, two devices": {enforcer.Verdict{Enforced: true, Limit: limit, Devices: append(veth, datapath.Device{Name: "veth2"}), Code: enforcer.CodePolicing},
			corev1.ConditionTrue, "10M on veth12ab, veth2 by policing"},
		"last good limit": {enforcer.Verdict{Enforced: true, Limit: limit, Devices: veth, Code: enforcer.CodeLastGoodLimit, Reason: `"x" is no rate; the last good limit 10M stays`},
			corev1.ConditionTrue, `10M on veth12ab by policing; "x" is no rate; the last good limit 10M stays`},
		"host network": {enforcer.Verdict{Limit: limit, Code: enforcer.CodeHostNetwork, Reason: "the pod shares the node's network namespace"},
			corev1.ConditionFalse, "10M is not enforced: the pod shares the node's network namespace"},
		"held in part": {enforcer.Verdict{Limit: limit, Devices: veth, Code: enforcer.CodeNotAllHeld, Reason: "not all that the pod sends is held: it has net1 (macvlan) as well"},
			corev1.ConditionFalse, "10M is not enforced: not all that the pod sends is held: it has net1 (macvlan) as well"},
		"unreadable": {enforcer.Verdict{Code: enforcer.CodeInvalidLimit, Reason: `"x" is no rate`}, corev1.ConditionFalse, `"x" is no rate`},
	} {
		got := Of(c.verdict)
		if got.Type != "kubepace.io/EgressEnforced" || got.Status != c.status || got.Reason != string(c.verdict.Code) || got.Message != c.message {
			t.Errorf("%s: %+v; want %s, %q", name, got, c.status, c.message)
		}
	}
	long := Of(enforcer.Verdict{Code: enforcer.CodeFailed, Reason: strings.Repeat("ä", maxMessage)})
	if len(long.Message) > maxMessage || !utf8.ValidString(long.Message) {
		t.Errorf("message of %d bytes, valid %v; want it cut", len(long.Message), utf8.ValidString(long.Message))
	}
}
