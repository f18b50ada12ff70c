// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/kubepace/kubepace/bandwidth"
)

// Amount is how much of our resource one container carries: texts of quantities, empty where there is none.
type Amount struct{ Request, Limit string }

// Container is what the policy reads of a container.
type Container struct {
	Amount
	// Sidecar: an init container that goes on running (restartPolicy Always).
	Sidecar bool
}

// Standing is what a pod that exists already had before the request.
type Standing struct {
	Limit bandwidth.Rate // bits/s; zero: none, or none that can be read
}

// ContainerChange sets our resource of one container, request and limit alike, or takes it away.
type ContainerChange struct {
	Init  bool // Index counts init containers
	Index int
	Rate  bandwidth.Rate // bits/s; zero takes it away
}

// path is the field of the container's resources.
func (c ContainerChange) path() *field.Path {
	list := "containers"
	if c.Init {
		list = "initContainers"
	}
	return field.NewPath("spec", list).Index(c.Index).Child("resources", "requests").Key(bandwidth.Resource)
}

// Charge is what Kubernetes counts the pod with, in bits/s: the sum of its containers' requests, or more where the init
// containers ask for more. Zero where the pod carries none that can be read.
func (p Pod) Charge() bandwidth.Rate {
	var running, peak bandwidth.Rate
	for _, c := range p.InitContainers {
		r := c.request()
		peak = max(peak, add(running, r))
		if c.Sidecar {
			running = add(running, r)
		}
	}
	for _, c := range p.Containers {
		running = add(running, c.request())
	}
	return max(running, peak)
}

// request is what counts: the request, or the limit where there is only that.
func (a Amount) request() bandwidth.Rate {
	text := a.Request
	if text == "" {
		text = a.Limit
	}
	return amountOf(text)
}

// amountOf reads a quantity of our resource; zero where it is none, or senseless.
func amountOf(text string) bandwidth.Rate {
	if text == "" || len(text) > 64 {
		return 0
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return 0
	}
	return bandwidth.Rate(q.Value())
}

// add does not overflow: hostile pods may carry what they like.
func add(a, b bandwidth.Rate) bandwidth.Rate {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<63 - 1
}

// Counted reports whether pods of the namespace carry our resource.
func (p Policy) Counted() bool { return len(p.CountedBy) > 0 }

// count gives a new pod the resource that it is counted with, or takes away what nothing counts.
func (p Policy) count(pod Pod, d *Decision) {
	if pod.Standing != nil || d.Denied() {
		return // Kubernetes changes no extended resource of a pod that exists
	}
	switch {
	case !p.Counted():
		d.Containers = changesTo(pod, -1, 0)
	case d.Limit == 0 && len(p.Quotas)+len(p.Ranges) > 0:
		d.Violations = field.ErrorList{field.Required(path, fmt.Sprintf(
			"each pod of namespace %q needs an egress limit, because %s counts it; write one like %q, or have a default set: kubectl label namespace %s %s=%s",
			p.Namespace, p.describeCount(), p.example(), p.Namespace, bandwidth.LabelDefault, p.example()))}
		return
	case d.Limit == 0:
		d.Warnings = append(d.Warnings, fmt.Sprintf("no egress limit: the pod is not counted, though %s asks for it", p.CountedBy[0]))
		d.Containers = changesTo(pod, -1, 0)
	default:
		d.Count = d.Limit
		d.Containers = changesTo(pod, carrier(pod), d.Limit)
	}
	d.warnOfAmounts(pod, p)
}

// carrier is the container that is to carry the resource: the first that does already, for other webhooks may have put a
// container before it since; else the first.
func carrier(pod Pod) int {
	for i, c := range pod.Containers {
		if c.Amount != (Amount{}) {
			return i
		}
	}
	return 0
}

// changesTo makes container at carry the rate, and no other one anything.
func changesTo(pod Pod, at int, rate bandwidth.Rate) []ContainerChange {
	var out []ContainerChange
	for i, c := range pod.InitContainers {
		if c.Amount != (Amount{}) {
			out = append(out, ContainerChange{Init: true, Index: i})
		}
	}
	for i, c := range pod.Containers {
		switch {
		case i == at && !c.is(rate):
			out = append(out, ContainerChange{Index: i, Rate: rate})
		case i != at && c.Amount != (Amount{}):
			out = append(out, ContainerChange{Index: i})
		}
	}
	return out
}

// is compares values, not spellings.
func (a Amount) is(rate bandwidth.Rate) bool {
	return amountOf(a.Request) == rate && amountOf(a.Limit) == rate
}

// warnOfAmounts tells the author about amounts of their own that went another way than they were written.
func (d *Decision) warnOfAmounts(pod Pod, p Policy) {
	for _, c := range d.Containers {
		list := pod.Containers
		if c.Init {
			list = pod.InitContainers
		}
		had := list[c.Index].Amount
		if had == (Amount{}) {
			continue
		}
		text := had.Request
		if text == "" {
			text = had.Limit
		}
		if c.Rate != 0 {
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s: %q became %v, the pod's egress limit", c.path(), shorten(text), c.Rate))
			continue
		}
		why := fmt.Sprintf("nothing in namespace %q counts it", p.Namespace)
		if p.Counted() {
			why = "a pod is counted once, in its first container"
		}
		d.Warnings = append(d.Warnings, fmt.Sprintf("%s: %q was removed: %s", c.path(), shorten(text), why))
	}
}

// ceiling is the most that a pod which exists may have, with the reason: what it is counted with never changes.
func (p Policy) ceiling(pod Pod) (rate bandwidth.Rate, why string) {
	if pod.Standing == nil {
		return 0, ""
	}
	if charge := pod.Charge(); charge > 0 {
		charge = min(max(charge, bandwidth.MinRate), bandwidth.MaxRate) // whatever it carries, a limit is a rate
		return charge, fmt.Sprintf("%v, what the pod is counted with; Kubernetes never changes that in a running pod", charge)
	}
	if len(p.Quotas) > 0 && pod.Standing.Limit > 0 {
		return pod.Standing.Limit, fmt.Sprintf("%v, what the pod has: it is older than %s, which does not count it", pod.Standing.Limit, p.Quotas[0])
	}
	return 0, ""
}

// hold keeps a pod that exists below its ceiling: a rate that its author writes now is refused, one that comes from the
// policy, or from the author's earlier words, is cut.
func (p Policy) hold(pod Pod, d *Decision, direct bool) {
	most, why := p.ceiling(pod)
	if most == 0 || d.Denied() || d.Limit != 0 && d.Limit <= most {
		return
	}
	switch {
	case d.Limit == 0:
		d.Violations = field.ErrorList{field.Required(path, fmt.Sprintf(
			"without a limit the pod could send more than %s; write at most %q, or recreate the pod", why, most))}
	case direct:
		d.Violations = field.ErrorList{p.invalid(pod.Annotations[bandwidth.AnnotationEgress], fmt.Sprintf(
			"is above %s; write at most %q, or recreate the pod", why, most))}
		d.Requested = pod.Annotations[bandwidth.AnnotationEgress]
	default:
		if d.Source == bandwidth.SourcePod {
			d.Source, d.Reason = bandwidth.SourceCapped, bandwidth.SourceCapped
			d.Requested = d.Limit.String()
		}
		d.Allowed, d.Limit, d.Ceiling = d.Limit, most, why
	}
}

// describeCount is one phrase about who cannot do without a count.
func (p Policy) describeCount() string {
	return strings.Join(slices.Concat(p.Quotas, p.Ranges), " and ")
}
