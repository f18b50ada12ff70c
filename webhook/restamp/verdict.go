// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// action is what a policy asks for a running pod.
type action string

const (
	settled  action = "settled"  // the pod is as today's policy would have it
	stamp    action = "stamp"    // admission would decide it differently
	refused  action = "refused"  // it would not be admitted today; it keeps what it has
	recreate action = "recreate" // it would get more than it was counted with, and a running pod's count is fixed
	held     action = "held"     // it would get more, but a setting cannot be read: what was there stays in force
)

// verdict is an action with its reasons.
type verdict struct {
	action   action
	from     string // the limit's text in the pod; empty: none
	decision policy.Decision
}

// judge is pure.
func judge(p policy.Policy, pod policy.Pod) verdict {
	d := p.Redecide(pod)
	v := verdict{from: pod.Annotations[bandwidth.AnnotationEgress], decision: d}
	switch {
	case d.Denied():
		v.action = refused
	case len(d.Changes) == 0 && d.Ceiling != "":
		v.action = recreate
	case len(d.Changes) == 0:
		v.action = settled
	case len(p.Problems) > 0 && loosens(v.from, d.Limit):
		v.action = held
	default:
		v.action = stamp
	}
	return v
}

// loosens reports whether a pod with this text may send more with the limit than before. Zero is no limit.
func loosens(from string, limit bandwidth.Rate) bool {
	rate, err := bandwidth.Parse(from)
	if err != nil {
		return false // no limit before, or none that peers agree about
	}
	return limit == 0 || limit > rate
}

// outcome names what a stamp did, for metrics and people.
func outcome(from, to string) string {
	before, errBefore := bandwidth.Parse(from)
	after, errAfter := bandwidth.Parse(to)
	switch {
	case to == "":
		return "lifted"
	case errBefore != nil || errAfter != nil:
		return "limited"
	case before < after:
		return "raised"
	case before > after:
		return "lowered"
	default:
		return "rewritten"
	}
}

// digest is a short name of a policy: equal policies have equal names.
func digest(p policy.Policy) string {
	raw, err := json.Marshal(p)
	if err != nil {
		// Strings and numbers only; and a wrong name costs one request more, no limit.
		raw = fmt.Appendf(nil, "%+v", p)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:4])
}

// nextMark is a value for the pod's mark that differs from the one that is there: only a change calls the webhook.
func nextMark(digest, current string) string {
	rest, same := strings.CutPrefix(current, digest)
	if !same {
		return digest
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(rest, "-"), 10, 32)
	if err != nil {
		n = 1
	}
	return fmt.Sprintf("%s-%d", digest, n+1)
}
