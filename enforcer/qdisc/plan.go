// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"fmt"
	"sort"

	"github.com/vishvananda/netlink"
)

// ourHandle marks the root qdisc that we set ("kp:"). Restoring touches nothing else.
const ourHandle uint32 = 0x6b70 << 16

// defaultKinds are what the kernel puts on a device by itself, and what may be replaced. Anything else was chosen by
// an administrator and stays.
var defaultKinds = map[string]bool{"noqueue": true, "pfifo_fast": true, "fq_codel": true, "fq": true}

// tree is the qdiscs of one device, ingress left out.
type tree struct {
	index int
	root  entry   // Kind is empty where the kernel shows none (a device that was never up)
	below []entry // sorted by parent
}

func newTree(index int, entries []entry) tree {
	t := tree{index: index}
	for _, e := range entries {
		switch {
		case e.isRoot():
			t.root = e
		case !e.isIngress():
			t.below = append(t.below, e)
		}
	}
	sort.Slice(t.below, func(i, j int) bool { return t.below[i].Parent < t.below[j].Parent })
	return t
}

// ours reports whether we set the root.
func (t tree) ours() bool { return t.root.Handle == ourHandle }

// paced reports whether every packet of the device passes a fq of ours.
func (t tree) paced(buckets uint32) bool {
	if t.root.Kind != "mq" {
		return isOurFq(t.root, buckets)
	}
	for _, leaf := range t.below {
		if !isOurFq(leaf, buckets) {
			return false
		}
	}
	return len(t.below) > 0
}

// foreign returns the first qdisc that somebody chose and that must stay.
func (t tree) foreign() (entry, bool) {
	if t.root.Kind != "" && t.root.Kind != "mq" && !defaultKinds[t.root.Kind] {
		return t.root, true
	}
	for _, e := range t.below {
		if !defaultKinds[e.Kind] {
			return e, true
		}
	}
	return entry{}, false
}

// describe names what is there, for people.
func (t tree) describe() string {
	switch {
	case t.root.Kind == "":
		return "none"
	case t.root.Kind != "mq" || len(t.below) == 0:
		return t.root.Kind
	}
	kinds := map[string]bool{}
	text := ""
	for _, leaf := range t.below {
		if !kinds[leaf.Kind] {
			kinds[leaf.Kind] = true
			text += "," + leaf.Kind
		}
	}
	return fmt.Sprintf("mq(%d×%s)", len(t.below), text[1:])
}

// newRoot is the root to set. A device whose queues the kernel scheduled apart keeps that: mq, with fq below. A
// virtual device has queues without locks of their own (noqueue), and one fq does.
func (t tree) newRoot(buckets uint32) entry {
	e := entry{Index: t.index, Kind: "fq", Handle: ourHandle, Parent: netlink.HANDLE_ROOT, Options: fqOptions(buckets)}
	if t.root.Kind == "mq" {
		e.Kind, e.Options = "mq", nil
	}
	return e
}

// newLeaves are the leaves of our mq that are not our fq yet.
func (t tree) newLeaves(buckets uint32) []entry {
	var list []entry
	for _, leaf := range t.below {
		if !isOurFq(leaf, buckets) {
			list = append(list, entry{Index: t.index, Kind: "fq", Parent: leaf.Parent, Options: fqOptions(buckets)})
		}
	}
	return list
}
