// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gopkg.in/inf.v0"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// Kinds of a rate setting.
const (
	kindDefault = "default"
	kindMin     = "minimum"
	kindMax     = "maximum"
)

// rateSetting is one readable rate among all that hold for a namespace.
type rateSetting struct {
	kind  string
	rate  bandwidth.Rate
	text  string      // as it was typed
	from  string      // where, for people: `the cluster's flag --cluster-max`
	path  *field.Path // where, in the object under review; nil outside of it
	fresh bool        // set or changed by the request under review
}

func (s rateSetting) String() string { return fmt.Sprintf("the %s %v (%s)", s.kind, s.rate, s.from) }

func rates(lists ...[]rateSetting) []rateSetting { return slices.Concat(lists...) }

func flagRates(c policy.Cluster) []rateSetting {
	var out []rateSetting
	for _, s := range []rateSetting{
		{kind: kindDefault, rate: c.Default, from: "the cluster's flag " + policy.FlagDefault},
		{kind: kindMin, rate: c.Min, from: "the cluster's flag " + policy.FlagMin},
		{kind: kindMax, rate: c.Max, from: "the cluster's flag " + policy.FlagMax},
	} {
		if s.rate != 0 {
			out = append(out, s)
		}
	}
	return out
}

// rateLabels says what the rate in a label is.
var rateLabels = map[string]string{
	bandwidth.LabelDefault: kindDefault, bandwidth.LabelMin: kindMin, bandwidth.LabelMax: kindMax,
}

// choiceLabels lists the values of the other labels.
var choiceLabels = map[string][]string{
	bandwidth.LabelMode:    {bandwidth.ModeEnforce, bandwidth.ModeDryRun, bandwidth.ModeOff},
	bandwidth.LabelOverMax: {bandwidth.OverMaxCap, bandwidth.OverMaxDeny},
	bandwidth.LabelAccount: {bandwidth.AccountAlways},
}

func labelPath(key string) *field.Path { return field.NewPath("metadata", "labels").Key(key) }

// labelRates are the namespace's labels that can be read, in the order of their keys; changed may be nil.
func labelRates(namespace string, labels map[string]string, changed map[string]bool) []rateSetting {
	var out []rateSetting
	for _, key := range slices.Sorted(maps.Keys(rateLabels)) {
		if rate, err := bandwidth.Parse(labels[key]); err == nil {
			out = append(out, rateSetting{
				kind: rateLabels[key], rate: rate, text: labels[key], path: labelPath(key), fresh: changed[key],
				from: fmt.Sprintf("namespace %q, label %s", namespace, key),
			})
		}
	}
	return out
}

// changedLabels are our keys that now have another value than before. One that was taken away sets nothing.
func changedLabels(now, before map[string]string) map[string]bool {
	out := map[string]bool{}
	for key, value := range now {
		old, had := before[key]
		if strings.HasPrefix(key, bandwidth.Prefix) && (!had || old != value) {
			out[key] = true
		}
	}
	return out
}

// checkLabels judges the changed labels one by one, and returns all that can be read.
func checkLabels(f *findings, namespace string, labels map[string]string, changed map[string]bool) []rateSetting {
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		text := labels[key]
		_, isRate := rateLabels[key]
		values, isChoice := choiceLabels[key]
		switch {
		case isRate:
			if _, err := bandwidth.Parse(text); err != nil {
				f.refuse(invalidRate(labelPath(key), text, err))
			}
		case isChoice:
			if !slices.Contains(values, text) {
				f.refuse(field.NotSupported(labelPath(key), text, values))
			}
		default:
			known := slices.Concat(slices.Collect(maps.Keys(rateLabels)), slices.Collect(maps.Keys(choiceLabels)))
			slices.Sort(known)
			f.warn("label %s has no effect: known are %s", key, strings.Join(known, ", "))
		}
	}
	return labelRates(namespace, labels, changed)
}

// invalidRate names the value, what is wrong with it and an example.
func invalidRate(path *field.Path, text string, err error) *field.Error {
	detail := err.Error()
	var pe *bandwidth.ParseError
	if errors.As(err, &pe) {
		detail = pe.Reason.Error()
		if pe.Hint != "" {
			detail += " (" + pe.Hint + ")"
		}
		detail += fmt.Sprintf("; write bits per second like %q", bandwidth.Example)
	}
	return field.Invalid(path, text, detail)
}

// contradictions refuses what cannot hold together, where at least one side of it is new: the new side is told.
// A maximum above another one is none: the tightest wins. Nobody will ever see it, so that is worth a warning.
func contradictions(f *findings, own, others []rateSetting) {
	all := rates(own, others)
	for _, s := range own {
		if !s.fresh {
			continue
		}
		for _, o := range all {
			if bad := clash(s, o); bad != "" {
				f.refuse(field.Invalid(s.path, s.text, bad))
			} else if s.kind == kindMax && o.kind == kindMax && o.rate < s.rate {
				f.warn("%s: %s has no effect, %v is tighter", s.path, s.text, o)
			}
		}
	}
}

// clash says why a setting cannot stand beside another one, from the first one's side; empty where it can.
func clash(s, o rateSetting) string {
	above := func(least bandwidth.Rate) string { return fmt.Sprintf("is above %v; write at most %q", o, least) }
	below := func(most bandwidth.Rate) string { return fmt.Sprintf("is below %v; write at least %q", o, most) }
	switch {
	case s.kind != kindMax && o.kind == kindMax && s.rate > o.rate,
		s.kind == kindMin && o.kind == kindDefault && s.rate > o.rate:
		return above(o.rate)
	case s.kind != kindMin && o.kind == kindMin && s.rate < o.rate,
		s.kind == kindMax && o.kind == kindDefault && s.rate < o.rate:
		return below(o.rate)
	default:
		return ""
	}
}

// limitEntry is one place of a LimitRange that names our resource.
type limitEntry struct {
	item  corev1.LimitRangeItem
	field string // max, min, default, ...
	text  string
	path  *field.Path
	fresh bool
}

// limitEntries finds them all, in the order of the text.
func limitEntries(lr *corev1.LimitRange) []limitEntry {
	var out []limitEntry
	for i, item := range lr.Spec.Limits {
		at := field.NewPath("spec", "limits").Index(i)
		for _, p := range []struct {
			name string
			list corev1.ResourceList
		}{
			{"max", item.Max}, {"min", item.Min}, {"default", item.Default},
			{"defaultRequest", item.DefaultRequest}, {"maxLimitRequestRatio", item.MaxLimitRequestRatio},
		} {
			if q, ok := p.list[bandwidth.Resource]; ok {
				out = append(out, limitEntry{item: item, field: p.name, text: q.String(), path: at.Child(p.name).Key(bandwidth.Resource)})
			}
		}
	}
	return out
}

// newEntries marks those that were not in the object before, wherever in the list they stood.
func newEntries(now, before []limitEntry) []limitEntry {
	for i, e := range now {
		now[i].fresh = !slices.ContainsFunc(before, func(b limitEntry) bool {
			return b.item.Type == e.item.Type && b.field == e.field && b.text == e.text
		})
	}
	return now
}

func anyFresh(entries []limitEntry) bool {
	return slices.ContainsFunc(entries, func(e limitEntry) bool { return e.fresh })
}

// rangeRates are the bounds that LimitRanges set and that can be read.
func rangeRates(ranges []corev1.LimitRange) []rateSetting {
	var out []rateSetting
	for i := range ranges {
		out = append(out, entryRates(ranges[i].Name, limitEntries(&ranges[i]))...)
	}
	return out
}

func entryRates(name string, entries []limitEntry) []rateSetting {
	var out []rateSetting
	for _, e := range entries {
		kind := map[string]string{"max": kindMax, "min": kindMin}[e.field]
		rate, err := bandwidth.Parse(e.text)
		if kind != "" && err == nil && e.item.Type == corev1.LimitTypePod {
			out = append(out, rateSetting{
				kind: kind, rate: rate, text: e.text, path: e.path, fresh: e.fresh, from: fmt.Sprintf("LimitRange %q", name),
			})
		}
	}
	return out
}

// checkEntries judges the fresh entries one by one, and returns all bounds that can be read.
func checkEntries(f *findings, name string, entries []limitEntry) []rateSetting {
	for _, e := range entries {
		if !e.fresh {
			continue
		}
		switch {
		case e.item.Type != corev1.LimitTypePod:
			f.refuse(field.Forbidden(e.path, fmt.Sprintf(
				"an egress limit belongs to a pod, not to a %s: write {type: Pod, max: {%s: %s}}", e.item.Type, bandwidth.Resource, bandwidth.Example)))
		case e.field != "max" && e.field != "min":
			f.refuse(field.Forbidden(e.path, fmt.Sprintf(
				"has no meaning for an egress limit: write max or min; a default is namespace label %s", bandwidth.LabelDefault)))
		default:
			if _, err := bandwidth.Parse(e.text); err != nil {
				f.refuse(invalidRate(e.path, e.text, err))
			}
		}
	}
	return entryRates(name, entries)
}

var hardPath = field.NewPath("spec", "hard")

// checkQuota judges the keys of spec.hard that name us, in any way. It reports false where the request sets none anew.
func checkQuota(f *findings, now, before *corev1.ResourceQuota) bool {
	relevant := false
	sameScopes := slices.Equal(now.Spec.Scopes, before.Spec.Scopes)
	for _, key := range slices.Sorted(maps.Keys(now.Spec.Hard)) {
		if !strings.Contains(string(key), bandwidth.Domain) {
			continue
		}
		amount := now.Spec.Hard[key]
		text := amount.String()
		old, had := before.Spec.Hard[key]
		fresh := !had || old.Cmp(amount) != 0
		path := hardPath.Key(string(key))
		if key != bandwidth.QuotaKey {
			if fresh {
				relevant = true
				f.refuse(field.Forbidden(path, fmt.Sprintf("Kubernetes would show this key and never count it: write %s: %q", bandwidth.QuotaKey, text)))
			}
			continue
		}
		if fresh {
			relevant = true
			if d := amount.AsDec(); new(inf.Dec).Round(d, 0, inf.RoundDown).Cmp(d) != 0 {
				f.refuse(field.Invalid(path, text, fmt.Sprintf("%v; write bits per second like %q", bandwidth.ErrFractional, "10G")))
			}
		}
		if (fresh || !sameScopes) && slices.Contains(now.Spec.Scopes, corev1.ResourceQuotaScopeBestEffort) {
			relevant = true
			f.refuse(field.Forbidden(field.NewPath("spec", "scopes"), fmt.Sprintf(
				"Kubernetes counts nothing but pods in scope %s: leave %s to a quota without it", corev1.ResourceQuotaScopeBestEffort, bandwidth.QuotaKey)))
		}
	}
	return relevant
}
