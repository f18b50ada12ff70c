// SPDX-License-Identifier: Apache-2.0

// Package policy decides one pod's egress limit. It is pure: settings and the pod's own words go in, a Decision with
// its reasons comes out; no clock, no client, no log.
//
// Two steps: Resolve turns every source (cluster flags, namespace labels) into one Policy, tightest wins; Policy.Decide
// applies it to a pod, default first, then bounds. Policy.Check judges an object that nobody may change any more.
//
// What always holds, and is fuzzed: a decision applied to its pod and decided again changes nothing; an admitted limit
// is in canonical text, never above the maximum and passes Check; no key but the three of Keys is ever changed.
package policy
