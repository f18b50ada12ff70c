// SPDX-License-Identifier: Apache-2.0

// Package policy decides one pod's egress limit. It is pure: settings and the pod's own words go in, a Decision with
// its reasons comes out; no clock, no client, no log.
//
// Two steps: Resolve turns every source (cluster flags, namespace labels, LimitRanges, ResourceQuotas) into one Policy,
// tightest wins; Policy.Decide applies it to a pod, default first, then bounds, then what it is counted with. Policy.Check
// judges an object that nobody may change any more; Policy.Redecide one that was decided under an earlier policy.
//
// What always holds, and is fuzzed: a decision applied to its pod and decided again changes nothing; an admitted limit
// is in canonical text, never above the maximum and passes Check; a new pod is counted with just its limit where anything
// counts and with nothing elsewhere, and one that exists never gets more than it is counted with; no key is ever changed
// but the three of Keys and, in containers, bandwidth.Resource.
package policy
