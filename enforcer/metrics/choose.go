// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"slices"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/report"
)

// chooser bounds how many pods have series of their own, and sums the counters of the rest.
//
// A pod that is named stays named until it is gone, and places that become free go to those that nothing holds, then
// to those that sent most. So there are never more names than places, a name comes at most once for a pod, and a pod
// never goes from its own series back into the sum: nothing is counted twice.
//
// The sum grows by what each of its pods gained since the last look. It does not shrink when a pod leaves, whereas a
// sum over the pods that are there would, and a counter that shrinks reads as a restart to Prometheus: all that was
// ever counted would be added once more. After a restart of the agent it begins at zero, with the pods that the kernel
// holds as they are then.
type chooser struct {
	places int
	named  map[string]bool              // by UID
	last   map[string]datapath.Counters // of the pods in the sum, by UID
	sum    datapath.Counters
	begun  bool
}

func newChooser(places int) *chooser {
	return &chooser{places: places, named: map[string]bool{}, last: map[string]datapath.Counters{}}
}

// choose splits the pods. Two pods of one name, of which the older must be on its way out, never both have series.
func (c *chooser) choose(all []report.Row) (named, rest []report.Row) {
	there := make(map[string]bool, len(all))
	for _, r := range all {
		there[r.UID] = true
	}
	for uid := range c.named {
		if !there[uid] {
			delete(c.named, uid)
		}
	}
	taken := map[string]bool{Other + "/" + Other: true}
	for _, r := range all {
		if c.named[r.UID] {
			taken[r.String()] = true
		}
	}
	for _, r := range ranked(all) {
		if len(c.named) >= c.places {
			break
		}
		if name := r.String(); !c.named[r.UID] && !taken[name] {
			c.named[r.UID], taken[name] = true, true
		}
	}
	for _, r := range all {
		if c.named[r.UID] {
			named = append(named, r)
		} else {
			rest = append(rest, r)
		}
	}
	c.add(rest)
	return named, rest
}

func ranked(all []report.Row) []report.Row {
	held := func(r report.Row) int {
		if r.Enforced {
			return 1
		}
		return 0
	}
	list := slices.Clone(all)
	slices.SortFunc(list, func(a, b report.Row) int {
		return cmp.Or(cmp.Compare(held(a), held(b)), cmp.Compare(b.Counters.Bytes, a.Counters.Bytes),
			cmp.Compare(b.LimitBPS, a.LimitBPS), cmp.Compare(a.UID, b.UID))
	})
	return list
}

// add grows the sum. A pod that came since the last look counts from zero, one that was there at the first look from
// what it had then.
func (c *chooser) add(rest []report.Row) {
	now := make(map[string]datapath.Counters, len(rest))
	for _, r := range rest {
		before, known := c.last[r.UID]
		if c.begun || known {
			c.sum = plus(c.sum, r.Counters, before)
		}
		now[r.UID] = r.Counters
	}
	c.last, c.begun = now, true
}

// plus adds what was gained; a counter that fell was begun anew.
func plus(sum, now, before datapath.Counters) datapath.Counters {
	gained := func(now, before uint64) uint64 {
		if now < before {
			return now
		}
		return now - before
	}
	sum.Packets += gained(now.Packets, before.Packets)
	sum.Bytes += gained(now.Bytes, before.Bytes)
	sum.Delayed += gained(now.Delayed, before.Delayed)
	sum.Sparse += gained(now.Sparse, before.Sparse)
	sum.Marked += gained(now.Marked, before.Marked)
	sum.Dropped += gained(now.Dropped, before.Dropped)
	sum.DroppedBytes += gained(now.DroppedBytes, before.DroppedBytes)
	return sum
}
