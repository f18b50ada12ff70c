// SPDX-License-Identifier: Apache-2.0

// Package condition says on each limited pod, in the condition kubepace.io/EgressEnforced, whether this node keeps its
// limit: which limit, on which devices, in which mode, or why not. Nothing is written where nothing changed.
package condition

import (
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// maxMessage bounds what a reason, which may quote an annotation or many paths, makes of a pod.
const maxMessage = 1024

// Of is the condition that says a verdict, without its time.
func Of(v enforcer.Verdict) corev1.PodCondition {
	c := corev1.PodCondition{Type: bandwidth.ConditionEnforced, Status: corev1.ConditionFalse, Reason: string(v.Code), Message: clip(Text(v))}
	if v.Enforced {
		c.Status = corev1.ConditionTrue
	}
	return c
}

// Text is a verdict in a line for people: "10M on veth1a2b by pacing; local delivery policed".
func Text(v enforcer.Verdict) string {
	if !v.Enforced {
		if v.Limit == 0 {
			return v.Reason
		}
		return v.Limit.String() + " is not enforced: " + v.Reason
	}
	names := make([]string, len(v.Devices))
	for i, d := range v.Devices {
		names[i] = d.Name
	}
	text := v.Limit.String() + " on " + strings.Join(names, ", ") + " by " + v.Mode.String()
	if v.Mode == datapath.ModePacing {
		// No qdisc holds what the node itself receives.
		text += "; local delivery policed"
	}
	if v.Reason != "" {
		text += "; " + v.Reason
	}
	return text
}

func clip(text string) string {
	const more = "…"
	if len(text) <= maxMessage {
		return text
	}
	cut := maxMessage - len(more)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + more
}

// same reports whether two conditions say the same, whenever they said it. Nil is no condition.
func same(a, b *corev1.PodCondition) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}
