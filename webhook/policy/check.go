// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/kubepace/kubepace/bandwidth"
)

// Check gives the verdict on a finished object, whoever changed it last: it must already be what Decide would have made
// of it. A wrong limit is a violation; wrong provenance only a warning, since it misleads nobody but its author.
func (p Policy) Check(pod Pod) Decision {
	d := p.Decide(pod)
	if d.Mode != bandwidth.ModeEnforce || d.Denied() {
		d.Warnings = nil // the mutating half has given them
		return d
	}
	changes, containers := d.Changes, d.Containers
	d.Changes, d.Containers, d.Warnings = nil, nil, nil
	for _, c := range changes {
		switch {
		case c.Key == bandwidth.AnnotationEgress:
			d.Violations = p.unfinished(pod, d)
			d.Reason = ReasonDenied
			return d
		case c.Remove:
			d.Warnings = append(d.Warnings, fmt.Sprintf("annotation %s does not fit the limit: it is not what the author asked for", c.Key))
		default:
			d.Warnings = append(d.Warnings, fmt.Sprintf("annotation %s does not fit the limit: it should be %q", c.Key, c.Value))
		}
	}
	p.checkCount(pod, &d, containers)
	return d
}

// checkCount refuses a new pod whose count is not its limit. Where nothing counts, what a pod carries does no harm but to
// its own scheduling.
func (p Policy) checkCount(pod Pod, d *Decision, changes []ContainerChange) {
	switch {
	case len(changes) == 0 || d.Count != 0 && pod.Charge() == d.Count:
	case d.Count == 0:
		d.Warnings = append(d.Warnings, fmt.Sprintf("%s: nothing in namespace %q counts it", changes[0].path(), p.Namespace))
	default:
		d.Violations = field.ErrorList{field.Invalid(changes[0].path(), pod.Charge().String(), fmt.Sprintf(
			"the pod is to be counted with its egress limit %v (%s); try again, or write that into its first container's requests and limits",
			d.Count, strings.Join(p.CountedBy, ", ")))}
		d.Reason = ReasonDenied
	}
}

// unfinished says how the limit differs from the one that admission would have written.
func (p Policy) unfinished(pod Pod, d Decision) field.ErrorList {
	text, ok := pod.Annotations[bandwidth.AnnotationEgress]
	if !ok {
		return field.ErrorList{field.Required(path, fmt.Sprintf("%s applies and was not written or was removed; write %q or try again",
			p.Default.describe("egress limit"), d.Limit))}
	}
	p.OverMax = bandwidth.OverMaxDeny
	rate, err := bandwidth.Parse(text)
	if err != nil {
		return field.ErrorList{p.invalid(text, reasonOf(err))}
	}
	if final := p.bound(text, rate); final.Denied() {
		return final.Violations
	}
	return field.ErrorList{p.invalid(text, fmt.Sprintf("is not the canonical text that every network plugin reads alike; write %q", rate))}
}
