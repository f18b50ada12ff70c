// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// rescan finds what inotify cannot report: a folder that came, or was made anew; and files that stay unreadable.
const rescan = 5 * time.Second

// Run follows the folder until ctx ends; it returns nil then.
func (c *Cache) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.dir, err)
	}
	defer watcher.Close()
	ticker := time.NewTicker(rescan)
	defer ticker.Stop()
	// A folder that is missing is no error: the runtime makes it with its first pod. Adding it again is none either.
	_ = watcher.Add(c.dir)
	c.scan()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			_ = watcher.Add(c.dir)
			c.scan()
		case err := <-watcher.Errors:
			if err != nil { // an overflow, mostly: whatever it was, look again
				c.scan()
			}
		case event := <-watcher.Events:
			if !event.Has(fsnotify.Chmod) {
				c.update(filepath.Base(event.Name))
			}
		}
	}
}
