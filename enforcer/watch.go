// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"os"
	"sync"

	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
	"github.com/kubepace/kubepace/enforcer/internal/rundir"
)

// everything may have changed on the node.
const everything = DevicesChanged | RoutesChanged | QdiscsChanged

// WatchNode pokes the loop at each change of the node's devices, routes, qdiscs and filters, until ctx ends, and makes ready
// for pods whose devices come.
func (e *Enforcer) WatchNode(ctx context.Context, f *device.Finder) error {
	w := newWatcher(e)
	defer w.attaching.Wait()
	return f.WatchNode(ctx, w)
}

// watcher takes the node's notices.
type watcher struct {
	*Enforcer
	attaching sync.WaitGroup
	turns     chan struct{} // each attachment waits on a thread of its own
}

// attachAtOnce bounds the threads.
const attachAtOnce = 32

func newWatcher(e *Enforcer) *watcher {
	return &watcher{Enforcer: e, turns: make(chan struct{}, attachAtOnce)}
}

// Ready implements device.Watcher.
func (w *watcher) Ready() { w.Poke(everything) }

// Changed implements device.Watcher.
func (w *watcher) Changed(c rtnl.Change) {
	switch c {
	case rtnl.ChangeLink:
		w.Poke(DevicesChanged)
	case rtnl.ChangeRoute:
		w.Poke(RoutesChanged)
	case rtnl.ChangeTC:
		w.Poke(QdiscsChanged)
	case rtnl.ChangeLost, rtnl.ChangeWhole:
		w.Poke(everything)
	}
}

// Came attaches the program while the pod's CNI plugin still works on its network: both wait for the same lock of the
// kernel.
func (w *watcher) Came(l device.Link) {
	if w.expected() == 0 {
		return
	}
	if attach := w.opts.Datapath.Early(l.Index); attach != nil {
		w.attaching.Go(func() {
			w.turns <- struct{}{}
			defer func() { <-w.turns }()
			attach()
		})
	}
}

// Filtered implements device.Watcher.
func (w *watcher) Filtered(ifindex int) { w.touch(ifindex) }

// ErrLocked means that another agent, or a cleanup, works with this run folder.
var ErrLocked = rundir.ErrLocked

// Lock takes the run folder for an agent, until the file is closed or the process ends. Its error wraps ErrLocked
// where another holds it.
func Lock(runDir string) (*os.File, error) { return rundir.Lock(runDir) }
