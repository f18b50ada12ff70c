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

// WatchNode calls changed for each change of the node's devices, routes, qdiscs and filters, until ctx ends. ready is
// called when no later change can be missed.
func (f *Finder) WatchNode(ctx context.Context, ready func(), changed func(rtnl.Change)) error {
	defer f.links.watch(false)
	return rtnl.Watch(ctx, f.own.handle, func() {
		f.links.watch(true)
		ready()
	}, func(c rtnl.Change, message syscall.NetlinkMessage) {
		switch c {
		case rtnl.ChangeLink:
			f.links.note(message)
		case rtnl.ChangeLost:
			f.links.watch(false)
		case rtnl.ChangeWhole:
			f.links.watch(true)
		}
		changed(c)
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
