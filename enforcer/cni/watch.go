// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// rescan finds what inotify cannot report: a folder that is not there yet, and files that stay unreadable.
	rescan = 5 * time.Second
	// calmRescans are how many of them pass while there is neither. Each wakes a processor.
	calmRescans = 12
)

// Run follows the folder until ctx ends; it returns nil then.
func (c *Cache) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.dir, err)
	}
	defer watcher.Close()
	ticker := time.NewTicker(c.rescan)
	defer ticker.Stop()
	c.follow(watcher)
	every := c.rescan
	for {
		wanted := c.rescan
		if slices.Contains(watcher.WatchList(), c.dir) && c.asScanned() {
			wanted *= calmRescans
		}
		if wanted != every { // not each time: events must not keep it from ticking
			every = wanted
			ticker.Reset(every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.follow(watcher)
		case err := <-watcher.Errors:
			if err != nil { // an overflow, mostly: whatever it was, look again
				c.scan()
			}
		case event := <-watcher.Events:
			switch {
			case filepath.Dir(event.Name) != c.dir: // the folder itself came or went, or one above it
				c.follow(watcher)
			case !event.Has(fsnotify.Chmod):
				c.update(filepath.Base(event.Name))
			}
		}
	}
}

// follow watches the folder and reads it. A folder that is missing is no error: the runtime makes it with the node's
// first pod, which must not have to wait for the next rescan; so until then the nearest folder above it is watched.
func (c *Cache) follow(watcher *fsnotify.Watcher) {
	watched := slices.Contains(watcher.WatchList(), c.dir)
	for {
		dir := c.dir
		for watcher.Add(dir) != nil && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
		}
		if dir == c.dir {
			break
		}
		// What came between the two looks has told nobody.
		if next := below(dir, c.dir); watcher.Add(next) != nil {
			return
		}
	}
	for _, path := range watcher.WatchList() {
		if path != c.dir {
			_ = watcher.Remove(path)
		}
	}
	if !watched || !c.asScanned() { // what came before the watch began has told nobody
		c.scan()
	}
}

// asScanned reports whether the folder is the one that was scanned, has the files that it had, and none of them is to
// be read again. What is written into a file inotify tells.
func (c *Cache) asScanned() bool {
	info, err := os.Stat(c.dir)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		if f.err != nil && !errors.Is(f.err, errNoPod) {
			return false
		}
	}
	return c.overflow == nil && stampOf(info) == c.scanned
}

// below is the next folder on the way from dir down to path.
func below(dir, path string) string {
	for filepath.Dir(path) != dir {
		path = filepath.Dir(path)
	}
	return path
}
