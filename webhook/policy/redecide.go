// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"

	"github.com/kubepace/kubepace/bandwidth"
)

// Redecide gives the verdict on a pod whose annotations admission has decided earlier, perhaps under another policy, and
// which nobody has touched since: it goes back to the author's own words and decides these. So a policy that was
// loosened gives back what capping took, and a pod that asked for nothing follows the default.
//
// Decide cannot do that. To it an annotation that is not what today's policy would have made is the author's new word.
func (p Policy) Redecide(pod Pod) Decision {
	said := pod
	said.Annotations = AuthorsWords(pod.Annotations)
	d := p.decide(said, true)
	if _, asks := said.Annotations[bandwidth.AnnotationEgress]; !asks && d.Denied() {
		// No limit applies any more, and a pod that is counted cannot be let go: it keeps what it has.
		_, why := p.ceiling(pod)
		return Decision{Mode: d.Mode, Reason: ReasonHeld, Limit: pod.Standing.Limit, Ceiling: why}
	}
	if d.Mode == bandwidth.ModeEnforce && !d.Denied() && !p.leftAlone(d.Reason) {
		d.Changes = d.changes(pod.Annotations)
	}
	return d
}

// leftAlone: Decide changes nothing in such pods, whatever their annotations.
func (Policy) leftAlone(r Reason) bool {
	return r == ReasonOff || r == ReasonMirror || r == ReasonHostNetwork
}

// AuthorsWords undoes what admission wrote: the limit is what the author asked for, or none where a default was given.
// The input stays as it is. Whoever forged the marks gets what asking for it would have got.
func AuthorsWords(annotations map[string]string) map[string]string {
	out := maps.Clone(annotations)
	request, requested := out[bandwidth.AnnotationRequested]
	source := out[bandwidth.AnnotationSource]
	delete(out, bandwidth.AnnotationRequested)
	delete(out, bandwidth.AnnotationSource)
	if _, limited := out[bandwidth.AnnotationEgress]; !limited {
		return out
	}
	_, err := bandwidth.Parse(request)
	switch {
	case requested && err == nil:
		out[bandwidth.AnnotationEgress] = request
	case source == bandwidth.SourceNamespaceDefault, source == bandwidth.SourceClusterDefault:
		delete(out, bandwidth.AnnotationEgress)
	}
	return out
}
