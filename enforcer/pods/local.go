// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/enforcer/cni"
)

// Results is what Local needs of the CNI result cache.
type Results interface {
	Run(ctx context.Context) error
	View() *cni.View
	Changes() <-chan struct{}
}

var _ Results = (*cni.Cache)(nil)

// Local adds to a source what the node itself knows: each pod's network, before the source knows the pod's address;
// and pods that only the node knows, because the API server is away.
type Local struct {
	source  Source
	results Results
	alive   func(netns string) bool
	changes signal
}

var _ Source = (*Local)(nil)

// NewLocal wraps a source. alive reports whether a file in the folder of network namespaces is one; nil means that
// the source alone says which pods there are.
func NewLocal(source Source, results Results, alive func(netns string) bool) *Local {
	return &Local{source: source, results: results, alive: alive, changes: newSignal()}
}

// Run implements Source.
func (l *Local) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.source.Run(ctx) })
	group.Go(func() error { return l.results.Run(ctx) })
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-l.source.Changes():
			case <-l.results.Changes():
			}
			l.changes.notify()
		}
	})
	return group.Wait()
}

// Changes implements Source.
func (l *Local) Changes() <-chan struct{} { return l.changes }

// Snapshot implements Source.
func (l *Local) Snapshot() Snapshot {
	return mergeLocal(l.source.Snapshot(), l.results.View(), l.alive)
}

// mergeLocal gives each pod its sandboxes, and adds the pods of living sandboxes that were given a limit and that the
// source does not know. They are held for as long as they live, even where the source is up to date: a pod that was
// deleted by force, or a static pod whose mirror was refused, sends all the same, and dropping the limit of a static
// pod until its mirror comes would be a gap. What the source says of a pod that it knows goes before anything else.
func mergeLocal(s Snapshot, view *cni.View, alive func(netns string) bool) Snapshot {
	byUID := make(map[string]bool, len(s.Pods))
	for _, pod := range s.Pods {
		byUID[pod.UID] = true
	}
	taken := make(map[string]bool, len(s.Pods))
	merged := Snapshot{Pods: make([]Pod, 0, len(s.Pods)), Complete: s.Complete, Problems: append(s.Problems[:len(s.Problems):len(s.Problems)], view.Problems()...)}
	for _, pod := range s.Pods {
		pod.Sandboxes = sandboxesOf(pod, pod.UID, view)
		// A static pod is known to the runtime by the hash of its manifest, and its mirror's UID changes while it runs
		// on. Anybody may write such a hash into a pod: it counts where the node says the same of namespace and name.
		if hash := pod.StaticUID; hash != "" && !byUID[hash] && !taken[hash] && len(pod.Sandboxes) == 0 {
			if list := sandboxesOf(pod, hash, view); len(list) > 0 {
				pod.Object, pod.UID, pod.Sandboxes = pod.UID, hash, list
			}
		}
		taken[pod.UID] = true
		merged.Pods = append(merged.Pods, pod)
	}
	if alive != nil {
		for _, uid := range view.UIDs() {
			if taken[uid] {
				continue // it is not asked, 250 times in every pass, whether a namespace lives
			}
			if pod, ok := unknown(view.Sandboxes(uid), alive); ok {
				merged.Pods = append(merged.Pods, pod)
			}
		}
	}
	slices.SortFunc(merged.Pods, compare)
	return merged
}

// sandboxesOf are those that name the pod as the source does.
func sandboxesOf(pod Pod, uid string, view *cni.View) []cni.Sandbox {
	if pod.HostNetwork {
		return nil
	}
	list := view.Sandboxes(uid)
	for _, s := range list {
		if s.Namespace != pod.Namespace || s.Name != pod.Name {
			return nil
		}
	}
	return list
}

// unknown is the pod of a sandbox, if the newest that lives was given a limit.
func unknown(sandboxes []cni.Sandbox, alive func(netns string) bool) (Pod, bool) {
	for i, s := range sandboxes {
		if !alive(s.Netns) {
			continue
		}
		if !s.Limited() {
			return Pod{}, false
		}
		pod := Pod{Pod: s.Pod, Rate: s.Rate, Sandboxes: sandboxes[i:], Phase: corev1.PodPending, Origin: OriginCNI}
		if s.RateErr != nil {
			pod.Rate, pod.Err = 0, fmt.Errorf("CNI result: %w", s.RateErr)
		}
		return pod, true
	}
	return Pod{}, false
}
