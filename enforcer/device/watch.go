// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

const (
	// rewatch is how often a folder of namespaces that does not exist yet is looked for.
	rewatch = 5 * time.Second
	// stillWatched is how often one that is watched is. Its end is told, but for a mount that goes.
	stillWatched = time.Minute
)

// Watcher is told of the node's changes, from one goroutine. Its methods must be quick.
type Watcher interface {
	// Ready: no later change can be missed.
	Ready()
	// Came: a device leads to another network namespace, and did not before.
	Came(Link)
	// Filtered: qdiscs or filters of a device changed.
	Filtered(ifindex int)
	// Changed is called after them, and for all else.
	Changed(rtnl.Change)
}

// WatchNode tells of each change of the node's devices, routes, qdiscs and filters, until ctx ends.
func (f *Finder) WatchNode(ctx context.Context, w Watcher) error {
	defer f.links.watch(false)
	return rtnl.Watch(ctx, f.own.handle, func() {
		f.links.watch(true)
		w.Ready()
	}, func(c rtnl.Change, message syscall.NetlinkMessage) {
		switch c {
		case rtnl.ChangeLink:
			if l, came := f.links.note(message); came {
				w.Came(l)
			}
		case rtnl.ChangeTC:
			if index := rtnl.DeviceOfTC(message); index > 0 {
				w.Filtered(index)
			}
		case rtnl.ChangeLost:
			f.links.watch(false)
		case rtnl.ChangeWhole:
			f.links.watch(true)
		}
		w.Changed(c)
	})
}

// WatchNetns calls changed when a network namespace appears in the finder's folder or leaves it, until ctx ends. A
// namespace is mounted onto its file a moment after the file was made, and only the latter can be watched: look
// again after a moment.
func (f *Finder) WatchNetns(ctx context.Context, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.dir, err)
	}
	defer watcher.Close()
	ticker := time.NewTicker(rewatch)
	defer ticker.Stop()
	// A folder that is missing is no error: ip-netns(8) and the runtimes make it when they need it.
	_ = watcher.Add(f.dir)
	every := rewatch
	for {
		wanted := stillWatched
		if len(watcher.WatchList()) == 0 {
			wanted = rewatch
		}
		if wanted != every { // not each time: events must not keep it from ticking
			every = wanted
			ticker.Reset(every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if len(watcher.WatchList()) == 0 && watcher.Add(f.dir) == nil {
				changed()
			}
		case err := <-watcher.Errors:
			if err != nil { // an overflow, mostly: whatever it was, look again
				changed()
			}
		case event := <-watcher.Events:
			if event.Has(fsnotify.Create) || event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
				changed()
			}
		}
	}
}
