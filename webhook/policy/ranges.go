// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/kubepace/kubepace/bandwidth"
)

// Range is what the policy reads of one entry of a LimitRange that names our resource: texts of quantities, empty where
// there is none.
type Range struct {
	Name     string // of the LimitRange
	Type     string // of the entry: "Pod"; others mean nothing to us
	Min, Max string
	// LastGoodMin and LastGoodMax are what unreadable ones said before, where that is known.
	LastGoodMin, LastGoodMax string
	// Others are fields of the entry that name our resource and mean nothing, such as "default".
	Others []string
}

// Quota is what the policy reads of a ResourceQuota.
type Quota struct {
	Name string
	// Counts: it has the key under which Kubernetes counts our resource.
	Counts bool
	// Others are keys that are meant for us and that Kubernetes never counts, such as "limits.kubepace.io/egress-bandwidth".
	Others []string
}

// typePod is the type of LimitRange entries that hold for a pod as a whole.
const typePod = "Pod"

// addRanges reads every LimitRange. Kubernetes itself holds pods against the entries of type Pod, so pods carry the
// resource wherever there is one.
func (r *resolver) addRanges(ranges []Range) {
	for _, e := range sorted(ranges, func(e Range) string { return e.Name }) {
		owner := fmt.Sprintf("LimitRange %q", e.Name)
		if e.Type != typePod {
			r.problem("%s: an entry of type %s names %s, which belongs to pods; it is ignored", owner, e.Type, bandwidth.Resource)
			continue
		}
		for _, f := range e.Others {
			r.problem("%s: %s has no meaning for %s; it is ignored", owner, f, bandwidth.Resource)
		}
		if e.Min == "" && e.Max == "" {
			continue
		}
		r.countedBy(owner)
		if !slices.Contains(r.Ranges, owner) {
			r.Ranges = append(r.Ranges, owner)
		}
		low, bad := r.rangeBound(owner, "min", e.Min, e.LastGoodMin)
		if bad != "" {
			r.problem("%s; there is no such minimum until it is mended", bad)
		}
		high, bad := r.rangeBound(owner, "max", e.Max, e.LastGoodMax)
		if bad != "" {
			r.badMaxes = append(r.badMaxes, bad)
		}
		r.add(settings{min: low, max: high})
	}
}

// rangeBound reads one bound; bad says what is wrong with it.
func (r *resolver) rangeBound(owner, name, text, earlier string) (b Bound, bad string) {
	if text == "" {
		return Bound{}, ""
	}
	b = Bound{Owner: owner, Setting: name + " of " + bandwidth.Resource, Source: bandwidth.SourceNamespaceDefault}
	var err error
	if b.Rate, err = bandwidth.Parse(text); err != nil {
		return r.lastGood(b, earlier, fmt.Sprintf("%s: %s %q %s", owner, name, text, reasonOf(err)))
	}
	return b, ""
}

// addQuotas reads every ResourceQuota.
func (r *resolver) addQuotas(quotas []Quota) {
	for _, q := range sorted(quotas, func(q Quota) string { return q.Name }) {
		owner := fmt.Sprintf("ResourceQuota %q", q.Name)
		for _, key := range q.Others {
			r.problem("%s: Kubernetes shows %s and never counts it; write %s", owner, key, bandwidth.QuotaKey)
		}
		if q.Counts {
			r.countedBy(owner)
			r.Quotas = append(r.Quotas, owner)
		}
	}
}

// countedBy notes who wants pods counted, each once.
func (r *resolver) countedBy(owner string) {
	if !slices.Contains(r.CountedBy, owner) {
		r.CountedBy = append(r.CountedBy, owner)
	}
}

// sorted makes the result independent of the order in which a cache lists objects.
func sorted[T any](list []T, name func(T) string) []T {
	return slices.SortedStableFunc(slices.Values(list), func(a, b T) int { return cmp.Compare(name(a), name(b)) })
}
