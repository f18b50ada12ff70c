// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

const (
	// A Lease says itself how long it is good for, within these bounds: what is in it is an agent's word.
	shortest = 2 * time.Second
	longest  = 10 * time.Minute
)

// sighting is when a renewal was seen here for the first time.
type sighting struct {
	renewed time.Time // what the Lease says, by the agent's clock
	seen    time.Time // by ours
}

// ledger tells which Leases have run out by this process's own clock: one that has not been renewed for its duration
// while we watched. So clocks that differ do no harm, a new leader gives every agent the full time, and so does one that
// could not look for a while.
type ledger struct{ seen map[string]sighting } // by the Lease's name

// reset forgets everything: after a look that failed, nobody can say what was renewed meanwhile.
func (l *ledger) reset() { l.seen = nil }

// expired takes a look at all Leases and returns those of agents that have run out.
func (l *ledger) expired(leases []coordinationv1.Lease, now time.Time) []*coordinationv1.Lease {
	var out []*coordinationv1.Lease
	next := make(map[string]sighting, len(leases))
	for i := range leases {
		lease := &leases[i]
		if nodeOf(lease) == "" {
			continue
		}
		s := sighting{seen: now}
		if lease.Spec.RenewTime != nil {
			s.renewed = lease.Spec.RenewTime.Time
		}
		if before, ok := l.seen[lease.Name]; ok && before.renewed.Equal(s.renewed) {
			s.seen = before.seen
		}
		next[lease.Name] = s
		if now.Sub(s.seen) >= durationOf(lease) {
			out = append(out, lease)
		}
	}
	l.seen = next
	return out
}

// nodeOf is the node whose agent renews a Lease; empty for a Lease of somebody else's.
func nodeOf(lease *coordinationv1.Lease) string {
	name, ours := strings.CutPrefix(lease.Name, bandwidth.LeasePrefix)
	if !ours || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != name {
		return ""
	}
	return name
}

func durationOf(lease *coordinationv1.Lease) time.Duration {
	if lease.Spec.LeaseDurationSeconds == nil {
		return longest
	}
	return min(max(time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second, shortest), longest)
}
