// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kubepace/kubepace/bandwidth"
)

// Flag names of the cluster's settings, as messages quote them.
const (
	FlagDefault = "--cluster-default"
	FlagMin     = "--cluster-min"
	FlagMax     = "--cluster-max"
)

// Cluster is the administrator's policy for every namespace, in bits/s. A zero Rate is not set.
type Cluster struct {
	Default bandwidth.Rate
	Min     bandwidth.Rate
	Max     bandwidth.Rate
}

// Validate reports every contradiction among the cluster's own settings, joined.
func (c Cluster) Validate() error {
	var errs []error
	for _, s := range []struct {
		flag string
		rate bandwidth.Rate
	}{{FlagDefault, c.Default}, {FlagMin, c.Min}, {FlagMax, c.Max}} {
		if s.rate != 0 && !s.rate.Valid() {
			errs = append(errs, fmt.Errorf("%s: %d bits/s is outside %v and %v", s.flag, s.rate, bandwidth.MinRate, bandwidth.MaxRate))
		}
	}
	if c.Max != 0 && c.Min > c.Max {
		errs = append(errs, fmt.Errorf("%s %v is above %s %v", FlagMin, c.Min, FlagMax, c.Max))
	}
	if c.Default != 0 && c.Max != 0 && c.Default > c.Max {
		errs = append(errs, fmt.Errorf("%s %v is above %s %v", FlagDefault, c.Default, FlagMax, c.Max))
	}
	if c.Default != 0 && c.Default < c.Min {
		errs = append(errs, fmt.Errorf("%s %v is below %s %v", FlagDefault, c.Default, FlagMin, c.Min))
	}
	return errors.Join(errs...)
}

// Namespace is what the policy reads of a namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
	Ranges []Range // entries of its LimitRanges that name our resource
	Quotas []Quota // its ResourceQuotas that name us
	// LastGood has what rate labels said before they became unreadable, where that is known.
	LastGood map[string]string
}

// Bound is one rate of a policy together with the object that set it.
type Bound struct {
	Rate    bandwidth.Rate
	Owner   string // who, ready for a possessive: `namespace "team-a"`, `the cluster`
	Setting string // where: `label egress.kubepace.io/max`, `flag --cluster-max`
	Source  string // the bandwidth.Source constant that a default from here leaves in the pod
}

// Policy is what holds for the pods of one namespace.
type Policy struct {
	Namespace string   // its name
	Mode      string   // a bandwidth.Mode constant
	OverMax   string   // a bandwidth.OverMax constant
	Default   Bound    // for pods that ask for none; a zero Rate means that they stay unlimited
	Mins      []Bound  // every minimum, tightest (highest) first
	Maxes     []Bound  // every maximum, tightest (lowest) first
	CountedBy []string // who wants pods to carry our resource, such as `ResourceQuota "egress"`; none: pods carry none
	Ranges    []string // the LimitRanges among them
	Quotas    []string // the ResourceQuotas among them
	Problems  []string // settings that could not be applied, each naming its object; to be shown to people
}

// settings are what one source says.
type settings struct {
	def, min, max Bound
}

// resolver collects the sources of one namespace.
type resolver struct {
	Policy
	namespace Namespace
	defaults  []Bound
	badMaxes  []string // maximums that cannot be read, and why
}

// Resolve merges the cluster's settings with a namespace's labels, LimitRanges and ResourceQuotas; the tightest wins. It
// never fails: what cannot be read is reported in Problems and replaced by the tightest setting that can.
func Resolve(cluster Cluster, namespace Namespace) Policy {
	r := &resolver{namespace: namespace}
	r.Policy.Namespace = namespace.Name
	r.Mode = r.choice(bandwidth.LabelMode, bandwidth.ModeEnforce, bandwidth.ModeDryRun, bandwidth.ModeOff)
	// A misspelt "deny" becomes "cap": either way no pod gets more than the maximum, and capping stops no rollout.
	r.OverMax = r.choice(bandwidth.LabelOverMax, bandwidth.OverMaxCap, bandwidth.OverMaxDeny)
	// The namespace first: among equals the more specific source gives its name.
	r.add(r.labels())
	r.addRanges(namespace.Ranges)
	r.addQuotas(namespace.Quotas)
	if text, ok := namespace.Labels[bandwidth.LabelAccount]; ok && text == bandwidth.AccountAlways {
		r.countedBy("label " + bandwidth.LabelAccount)
	} else if ok {
		r.problem("namespace %q: label %s: %q is not %q; it is ignored", namespace.Name, bandwidth.LabelAccount, text, bandwidth.AccountAlways)
	}
	r.add(flags(cluster))
	r.settle()
	return r.Policy
}

func flags(c Cluster) settings {
	bound := func(rate bandwidth.Rate, flag string) Bound {
		return Bound{rate, "the cluster", "flag " + flag, bandwidth.SourceClusterDefault}
	}
	return settings{bound(c.Default, FlagDefault), bound(c.Min, FlagMin), bound(c.Max, FlagMax)}
}

func (r *resolver) labels() settings {
	var s settings
	var bad string
	if s.def, bad = r.label(bandwidth.LabelDefault); bad != "" {
		r.problem("%s; pods that ask for none get the next default or maximum, if there is one", bad)
	}
	if s.min, bad = r.label(bandwidth.LabelMin); bad != "" {
		r.problem("%s; there is no such minimum until it is mended", bad)
	}
	if s.max, bad = r.label(bandwidth.LabelMax); bad != "" {
		r.badMaxes = append(r.badMaxes, bad)
	}
	return s
}

// label reads a rate. bad says what is wrong with it, naming the label.
func (r *resolver) label(key string) (b Bound, bad string) {
	text, ok := r.namespace.Labels[key]
	if !ok {
		return Bound{}, ""
	}
	owner := fmt.Sprintf("namespace %q", r.namespace.Name)
	b = Bound{Owner: owner, Setting: "label " + key, Source: bandwidth.SourceNamespaceDefault}
	var err error
	if b.Rate, err = bandwidth.Parse(text); err != nil {
		return r.lastGood(b, r.namespace.LastGood[key], fmt.Sprintf("%s: label %s: %q %s", owner, key, text, reasonOf(err)))
	}
	return b, ""
}

// lastGood stands in for a setting that cannot be read, with what it said before. bad stays where that is not known.
func (r *resolver) lastGood(b Bound, text, bad string) (Bound, string) {
	rate, err := bandwidth.Parse(text)
	if err != nil {
		return Bound{}, bad
	}
	b.Rate = rate
	r.problem("%s; %v, what it said before, applies until it is mended", bad, rate)
	return b, ""
}

// choice reads a label that has few values; the first one is the default, also for a value that is none of them.
func (r *resolver) choice(key string, values ...string) string {
	text, ok := r.namespace.Labels[key]
	if !ok || slices.Contains(values, text) {
		return cmp.Or(text, values[0])
	}
	r.problem("namespace %q: label %s: %q is none of %q; %q applies", r.namespace.Name, key, text, values, values[0])
	return values[0]
}

func (r *resolver) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *resolver) add(s settings) {
	if s.def.Rate != 0 {
		r.defaults = append(r.defaults, s.def)
	}
	if s.min.Rate != 0 {
		r.Mins = append(r.Mins, s.min)
	}
	if s.max.Rate != 0 {
		r.Maxes = append(r.Maxes, s.max)
	}
}

// settle orders the bounds and resolves what contradicts itself, always to the tighter side.
func (r *resolver) settle() {
	ascending := func(a, b Bound) int { return cmp.Compare(a.Rate, b.Rate) }
	slices.SortStableFunc(r.defaults, ascending)
	slices.SortStableFunc(r.Maxes, ascending)
	slices.SortStableFunc(r.Mins, func(a, b Bound) int { return ascending(b, a) })
	r.settleBadMax()
	r.settleMins()
	r.settleDefault()
}

// settleBadMax stands in for a maximum that cannot be read: the tightest maximum or default that can, for whoever wrote
// the default surely meant it to be below. With neither, pods are admitted as they ask: refusing them would make one
// mistyped label stop every restart in the namespace, to protect nobody more than its first day did. Every author is
// warned, and nothing is lost: once the label is mended the requests stand in the pods.
func (r *resolver) settleBadMax() {
	bad := strings.Join(r.badMaxes, "; ")
	switch {
	case bad == "":
	case len(r.defaults) > 0 && (len(r.Maxes) == 0 || r.defaults[0].Rate < r.Maxes[0].Rate):
		r.Maxes = slices.Insert(r.Maxes, 0, r.defaults[0])
		r.problem("%s; %s is the maximum until it is mended", bad, r.defaults[0].describe("default"))
	case len(r.Maxes) > 0:
		r.problem("%s; %s applies", bad, r.Maxes[0].describe("maximum"))
	default:
		r.problem("%s; NO MAXIMUM APPLIES until it is mended", bad)
	}
}

// settleMins drops the minimums that no maximum leaves room for: the maximum protects the neighbours.
func (r *resolver) settleMins() {
	if len(r.Maxes) == 0 {
		return
	}
	r.Mins = slices.DeleteFunc(r.Mins, func(b Bound) bool {
		impossible := b.Rate > r.Maxes[0].Rate
		if impossible {
			r.problem("%s is above %s; the minimum is ignored", b.describe("minimum"), r.Maxes[0].describe("maximum"))
		}
		return impossible
	})
}

// settleDefault picks the tightest default and moves it between the bounds. Where there is none the maximum is the
// default, as in a LimitRange: a pod without a limit is above every maximum.
func (r *resolver) settleDefault() {
	switch {
	case len(r.defaults) > 0:
		r.Default = r.defaults[0]
	case len(r.Maxes) > 0:
		r.Default = r.Maxes[0]
	default:
		return
	}
	if d := &r.Default; len(r.Maxes) > 0 && d.Rate > r.Maxes[0].Rate {
		r.problem("%s is above %s; pods that ask for none get %v", d.describe("default"), r.Maxes[0].describe("maximum"), r.Maxes[0].Rate)
		d.Rate = r.Maxes[0].Rate
	}
	if d := &r.Default; len(r.Mins) > 0 && d.Rate < r.Mins[0].Rate {
		r.problem("%s is below %s; pods that ask for none get %v", d.describe("default"), r.Mins[0].describe("minimum"), r.Mins[0].Rate)
		d.Rate = r.Mins[0].Rate
	}
}

// describe gives `namespace "team-a"'s maximum 50M (label egress.kubepace.io/max)`.
func (b Bound) describe(what string) string {
	return fmt.Sprintf("%s's %s %v (%s)", b.Owner, what, b.Rate, b.Setting)
}

// reasonOf is a parse error without the value and the examples, for messages that show those themselves.
func reasonOf(err error) string {
	var pe *bandwidth.ParseError
	if !errors.As(err, &pe) {
		return err.Error()
	}
	if pe.Hint == "" {
		return pe.Reason.Error()
	}
	return fmt.Sprintf("%v (%s)", pe.Reason, pe.Hint)
}
