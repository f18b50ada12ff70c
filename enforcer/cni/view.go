// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// Sandbox is the network of one pod sandbox, from all of its files: one per network where a pod has several.
type Sandbox struct {
	datapath.Pod
	ID string
	// Netns is a file name in the folder of network namespaces. What it names now may be something else than what it
	// named when the files were written: IPs and HostDevices are there to tell.
	Netns       string
	IPs         []netip.Addr
	HostDevices []string // the node's interfaces that the result names
	Inside      []string // the sandbox's own that it names, loopback left out
	// Rate is the smallest egress limit that the runtime passed to a network, zero for none; RateErr says why one is
	// no sane limit.
	Rate    bandwidth.Rate
	RateErr error
	Written time.Time // of the newest file
}

// Limited reports whether the runtime passed a limit, sane or not.
func (s Sandbox) Limited() bool { return s.Rate != 0 || s.RateErr != nil }

// View is the cache at one moment. It never changes.
type View struct {
	sandboxes map[string][]Sandbox
	owners    map[string]string
	problems  []error
}

// Sandboxes of a pod, the newest first, by the UID that the runtime knows: that of a static pod is the hash of its
// manifest. A namespace that a newer sandbox of anybody names is not among an older one's.
func (v *View) Sandboxes(uid string) []Sandbox { return v.sandboxes[uid] }

// Owner is the UID of the pod that a file in the folder of network namespaces belongs to, empty where none says.
func (v *View) Owner(netns string) string { return v.owners[netns] }

// UIDs of all pods, sorted.
func (v *View) UIDs() []string { return slices.Sorted(maps.Keys(v.sandboxes)) }

// Problems are files that cannot be read.
func (v *View) Problems() []error { return v.problems }

type sandboxKey struct{ uid, id, netns string }

// newView puts the files' results together.
func newView(results []result, problems []error) *View {
	byKey := make(map[sandboxKey]*Sandbox, len(results))
	for _, r := range results {
		if r.netns == "" {
			continue // nothing to find the pod by
		}
		key := sandboxKey{r.pod.UID, r.sandbox, r.netns}
		s := byKey[key]
		if s == nil {
			s = &Sandbox{Pod: r.pod, ID: r.sandbox, Netns: r.netns}
			byKey[key] = s
		}
		s.add(r)
	}
	all := make([]Sandbox, 0, len(byKey))
	for _, s := range byKey {
		slices.SortFunc(s.IPs, netip.Addr.Compare)
		slices.Sort(s.HostDevices)
		slices.Sort(s.Inside)
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Sandbox) int {
		return cmp.Or(b.Written.Compare(a.Written), cmp.Compare(a.UID, b.UID), cmp.Compare(a.ID, b.ID))
	})
	v := &View{sandboxes: make(map[string][]Sandbox, len(all)), owners: make(map[string]string, len(all)), problems: problems}
	for _, s := range all {
		if v.owners[s.Netns] != "" {
			continue
		}
		v.owners[s.Netns] = s.UID
		v.sandboxes[s.UID] = append(v.sandboxes[s.UID], s)
	}
	return v
}

func (s *Sandbox) add(r result) {
	s.IPs = union(s.IPs, r.ips)
	s.HostDevices = union(s.HostDevices, r.hostDevices)
	s.Inside = union(s.Inside, r.inside)
	if r.rate != 0 && (s.Rate == 0 || r.rate < s.Rate) {
		s.Rate = r.rate
	}
	if r.rateErr != nil {
		s.RateErr = r.rateErr
	}
	if r.written.After(s.Written) {
		s.Written = r.written
	}
}

// union appends what is not in list yet.
func union[T comparable](list, more []T) []T {
	for _, x := range more {
		if !slices.Contains(list, x) {
			list = append(list, x)
		}
	}
	return list
}

// Equal reports whether two sandboxes are the same and lead to the same devices.
func (s Sandbox) Equal(o Sandbox) bool {
	return s.Pod == o.Pod && s.ID == o.ID && s.Netns == o.Netns && s.Written.Equal(o.Written) &&
		slices.Equal(s.IPs, o.IPs) && slices.Equal(s.HostDevices, o.HostDevices) && slices.Equal(s.Inside, o.Inside)
}
