// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/kubepace/kubepace/bandwidth"
)

// Keys are the annotations that admission owns; it never changes another one.
var Keys = []string{bandwidth.AnnotationEgress, bandwidth.AnnotationRequested, bandwidth.AnnotationSource}

// path is the field that every violation names.
var path = field.NewPath("metadata", "annotations").Key(bandwidth.AnnotationEgress)

// Reason classifies a decision, for metrics and audit. The Source constants of package bandwidth are reasons too.
type Reason string

// Reasons beside the sources of a limit.
const (
	ReasonUnlimited   Reason = "unlimited"    // the pod asks for none and no default applies
	ReasonDenied      Reason = "denied"       // the pod is refused (in dry-run mode: would be)
	ReasonHostNetwork Reason = "host-network" // left alone: it has no device of its own
	ReasonMirror      Reason = "mirror"       // left alone: the node runs the manifest, not this object
	ReasonOff         Reason = "off"          // left alone: the namespace's mode
	ReasonHeld        Reason = "held"         // no limit applies any more, but the pod is counted with the one that it has
)

// Pod is what the policy reads of a pod.
type Pod struct {
	Annotations map[string]string
	HostNetwork bool
	// Mirror: the kubelet's copy of a static pod. Nobody gains by forging it: a kubelet does not run such pods, and
	// the API server lets nobody add or remove the mark later.
	Mirror bool
	// Containers and InitContainers, with what they carry of our resource.
	Containers, InitContainers []Container
	// Standing is nil for a pod that is being created.
	Standing *Standing
}

// Change is one annotation to set or to remove.
type Change struct {
	Key    string
	Value  string
	Remove bool
}

// Decision is a verdict with its reasons. Where Violations is empty the pod is admitted with Changes applied.
type Decision struct {
	Mode       string         // the namespace's mode
	Reason     Reason         // what happened
	Limit      bandwidth.Rate // bits/s; zero: no limit
	Requested  string         // what the author wrote, where it was refused or Limit's text differs from it
	Source     string         // a bandwidth.Source constant; empty without a limit
	Changes    []Change       // in the order of Keys; empty in dry-run mode
	Count      bandwidth.Rate // what a new pod is counted with: one container's request and limit; zero: not counted
	Containers []ContainerChange
	Allowed    bandwidth.Rate // what the policy would allow, where a pod that exists has to keep less; else zero
	Ceiling    string         // why it has to, and how much it keeps; empty where it has not
	Warnings   []string       // for whoever sent the request
	Violations field.ErrorList
}

// Denied reports whether the pod must be refused.
func (d Decision) Denied() bool { return len(d.Violations) > 0 }

// Decide gives the verdict on a pod that may still be changed.
func (p Policy) Decide(pod Pod) Decision { return p.decide(pod, false) }

// decide holds a pod that exists to what it is counted with: anew means that the limit is not its author's present word.
func (p Policy) decide(pod Pod, anew bool) Decision {
	switch {
	case p.Mode == bandwidth.ModeOff:
		return Decision{Mode: p.Mode, Reason: ReasonOff}
	case pod.Mirror:
		return Decision{Mode: p.Mode, Reason: ReasonMirror}
	case pod.HostNetwork:
		return p.leaveHostNetwork(pod)
	}
	d, direct := p.limit(pod)
	d.Mode = p.Mode
	p.hold(pod, &d, direct && !anew)
	p.count(pod, &d)
	if d.Denied() {
		d.Reason = ReasonDenied
	} else {
		d.Changes = d.changes(pod.Annotations)
	}
	d.Warnings = append(d.Warnings, p.Problems...)
	if p.Mode == bandwidth.ModeDryRun {
		d.pretend()
	}
	return d
}

// limit finds the pod's rate, provenance and violations.
// direct: it is what the author says now.
func (p Policy) limit(pod Pod) (d Decision, direct bool) {
	annotations := pod.Annotations
	text, asked := annotations[bandwidth.AnnotationEgress]
	if !asked {
		return p.byDefault(), false
	}
	rate, err := bandwidth.Parse(text)
	if err != nil {
		detail := fmt.Sprintf("%s; write bits per second like %q", reasonOf(err), p.example())
		return Decision{Requested: shorten(text), Violations: field.ErrorList{p.invalid(text, detail)}}, true
	}
	if p.isDefault(pod, rate) {
		return p.byDefault(), false
	}
	if request, earlier, ok := p.standingRequest(pod, rate); ok {
		return p.bound(request, earlier), false
	}
	return p.bound(text, rate), true
}

func (p Policy) byDefault() Decision {
	if p.Default.Rate == 0 {
		return Decision{Reason: ReasonUnlimited}
	}
	return Decision{Reason: Reason(p.Default.Source), Limit: p.Default.Rate, Source: p.Default.Source}
}

// isDefault knows our own earlier stamp. Whoever forges it gets what they would have got without.
func (p Policy) isDefault(pod Pod, rate bandwidth.Rate) bool {
	annotations, given := pod.Annotations, p.Default.Rate
	if most, _ := p.ceiling(pod); most > 0 {
		given = min(given, most)
	}
	_, requested := annotations[bandwidth.AnnotationRequested]
	return !requested && given == rate && annotations[bandwidth.AnnotationSource] == p.Default.Source &&
		annotations[bandwidth.AnnotationEgress] == rate.String()
}

// standingRequest returns what the author asked for earlier, if the present annotation is what we made of it. Anything
// else in the requested key is forged, or older than a new annotation, which replaces it.
func (p Policy) standingRequest(pod Pod, rate bandwidth.Rate) (string, bandwidth.Rate, bool) {
	annotations := pod.Annotations
	text, ok := annotations[bandwidth.AnnotationRequested]
	if !ok || annotations[bandwidth.AnnotationEgress] != rate.String() {
		return "", 0, false
	}
	earlier, err := bandwidth.Parse(text)
	if err != nil {
		return "", 0, false
	}
	granted := earlier
	if p.OverMax == bandwidth.OverMaxCap && len(p.Maxes) > 0 {
		granted = min(granted, p.Maxes[0].Rate)
	}
	if most, _ := p.ceiling(pod); most > 0 {
		granted = min(granted, most)
	}
	return text, earlier, granted == rate
}

// bound checks an author's rate against every minimum and maximum. text is how the author spelt it.
func (p Policy) bound(text string, rate bandwidth.Rate) Decision {
	d := Decision{Reason: bandwidth.SourcePod, Source: bandwidth.SourcePod, Limit: rate}
	for _, b := range p.Mins {
		if rate < b.Rate {
			d.Violations = append(d.Violations, p.invalid(text, fmt.Sprintf("is below %s; write at least %q",
				b.describe("minimum"), p.Mins[0].Rate)))
		}
	}
	if len(p.Maxes) > 0 && rate > p.Maxes[0].Rate {
		p.aboveMax(&d, text, rate)
	}
	if d.Denied() || text != d.Limit.String() {
		d.Requested = text
	}
	return d
}

// aboveMax refuses or caps.
func (p Policy) aboveMax(d *Decision, text string, rate bandwidth.Rate) {
	tightest := p.Maxes[0]
	if p.OverMax == bandwidth.OverMaxDeny {
		for _, b := range p.Maxes {
			if rate > b.Rate {
				d.Violations = append(d.Violations, p.invalid(text, fmt.Sprintf("is above %s; write at most %q",
					b.describe("maximum"), tightest.Rate)))
			}
		}
		return
	}
	d.Reason, d.Source, d.Limit = bandwidth.SourceCapped, bandwidth.SourceCapped, tightest.Rate
	d.Warnings = append(d.Warnings, fmt.Sprintf("egress limit %s is above %s: admitted with %v",
		text, tightest.describe("maximum"), tightest.Rate))
}

// leaveHostNetwork says that nobody can hold such a pod, where it asks for a limit or the policy would have set one.
func (p Policy) leaveHostNetwork(pod Pod) Decision {
	d := Decision{Mode: p.Mode, Reason: ReasonHostNetwork}
	text, asked := pod.Annotations[bandwidth.AnnotationEgress]
	switch {
	case asked:
		d.Warnings = append(d.Warnings, fmt.Sprintf("egress limit %q cannot be enforced: hostNetwork pods send from the node's own device", shorten(text)))
	case p.Default.Rate != 0:
		d.Warnings = append(d.Warnings, fmt.Sprintf("%s cannot be enforced: hostNetwork pods send from the node's own device", p.Default.describe("egress default")))
	}
	return d
}

// pretend turns a verdict into what dry-run mode shows of it.
func (d *Decision) pretend() {
	for _, v := range d.Violations {
		d.Warnings = append(d.Warnings, "would be refused: "+v.Error())
	}
	if d.Source != bandwidth.SourcePod && d.Source != bandwidth.SourceCapped && len(d.Changes) > 0 && d.Limit != 0 {
		d.Warnings = append(d.Warnings, fmt.Sprintf("would be limited to %v (%s)", d.Limit, d.Source))
	}
	for i, w := range d.Warnings {
		d.Warnings[i] = "egress dry-run, nothing changed: " + w
	}
	d.Changes, d.Violations, d.Containers, d.Count = nil, nil, nil, 0
}

// changes compares the decision with the pod's annotations.
func (d Decision) changes(annotations map[string]string) []Change {
	want := map[string]string{}
	if d.Limit != 0 {
		want[bandwidth.AnnotationEgress] = d.Limit.String()
		want[bandwidth.AnnotationSource] = d.Source
	}
	if d.Requested != "" {
		want[bandwidth.AnnotationRequested] = d.Requested
	}
	var out []Change
	for _, key := range Keys {
		value, wanted := want[key]
		have, present := annotations[key]
		switch {
		case wanted && (!present || have != value):
			out = append(out, Change{Key: key, Value: value})
		case !wanted && present:
			out = append(out, Change{Key: key, Remove: true})
		}
	}
	return out
}

// example is a rate that this policy admits.
func (p Policy) example() bandwidth.Rate {
	rate := bandwidth.MustParse(bandwidth.Example)
	if len(p.Maxes) > 0 {
		rate = min(rate, p.Maxes[0].Rate)
	}
	if len(p.Mins) > 0 {
		rate = max(rate, p.Mins[0].Rate)
	}
	return rate
}

func (p Policy) invalid(text, detail string) *field.Error {
	return field.Invalid(path, shorten(text), detail)
}

// shorten keeps messages readable: an annotation may be a quarter of a megabyte.
func shorten(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
