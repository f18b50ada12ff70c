// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"
)

const (
	// settle is how long a folder must be quiet before it is read: long enough for a writer to finish a file.
	settle = 100 * time.Millisecond
	// maxSettle bounds the wait in a folder that is never quiet.
	maxSettle = time.Second
	// rescan finds what inotify cannot report: a changed file behind a symbolic link, a folder that was replaced.
	rescan = 30 * time.Second
)

// Folder is the pods whose manifests lie in one folder. A file that cannot be read keeps the pods that it held when
// it was last readable.
type Folder struct {
	dir     string
	log     logr.Logger
	changes signal

	files map[string]manifest // by name; load's alone

	mu       sync.Mutex
	snapshot Snapshot
}

// manifest is what is known of one file.
type manifest struct {
	pods     []Pod
	everRead bool
	err      error // of the latest attempt
	stamp    stamp // of the file when it was read
}

var _ Source = (*Folder)(nil)

// NewFolder reads dir once, so that an unusable folder is an error at start. Bad files in it are not: they are in
// Snapshot.Problems.
func NewFolder(dir string, log logr.Logger) (*Folder, error) {
	f := &Folder{dir: dir, log: log, changes: newSignal(), files: map[string]manifest{}}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Snapshot implements Source.
func (f *Folder) Snapshot() Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot
}

// Changes implements Source.
func (f *Folder) Changes() <-chan struct{} { return f.changes }

// Run implements Source.
func (f *Folder) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.dir, err)
	}
	defer watcher.Close()
	ticker := time.NewTicker(rescan)
	defer ticker.Stop()
	f.rewatch(watcher)
	f.reload()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			f.rewatch(watcher)
		case err := <-watcher.Errors:
			f.log.Error(err, "watch of pod manifests failed; reading the folder again", "dir", f.dir)
		case <-watcher.Events:
			if !quiet(ctx, watcher.Events) {
				return nil
			}
		}
		f.reload()
	}
}

// rewatch adds the folder again: a no-op where it is watched already, needed where it was removed and made anew.
func (f *Folder) rewatch(watcher *fsnotify.Watcher) {
	if err := watcher.Add(f.dir); err != nil {
		f.log.V(1).Info("folder of pod manifests cannot be watched", "dir", f.dir, "error", err.Error())
	}
}

// quiet waits until no event came for a while. It reports false when ctx ended.
func quiet(ctx context.Context, events <-chan fsnotify.Event) bool {
	deadline := time.NewTimer(maxSettle)
	defer deadline.Stop()
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-deadline.C:
			return true
		case <-events:
			timer.Reset(settle)
		}
	}
}

func (f *Folder) reload() {
	if err := f.load(); err != nil {
		f.mu.Lock()
		known := len(f.snapshot.Problems) == 1 && f.snapshot.Problems[0].Error() == err.Error()
		f.snapshot.Problems = []error{err}
		f.snapshot.Complete = false
		f.mu.Unlock()
		if !known {
			f.log.Error(err, "pod manifests unreadable; the last good ones stay in force", "dir", f.dir)
			f.changes.notify()
		}
	}
}

// load reads the folder and replaces the snapshot. Only an unreadable folder is an error.
func (f *Folder) load() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("read folder of pod manifests: %w", err)
	}
	files := map[string]manifest{}
	for _, entry := range entries {
		if name := entry.Name(); isManifest(name) && !entry.IsDir() {
			path := filepath.Join(f.dir, name)
			now := stampOf(path)
			if before := f.files[name]; before.err == nil && now.same(before.stamp) {
				files[name] = before
				continue
			}
			pods, err := readManifest(path)
			if errors.Is(err, os.ErrNotExist) && !dangling(path) {
				continue // removed since ReadDir
			}
			files[name] = manifest{pods: pods, everRead: err == nil, err: err, stamp: now}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, now := range files {
		before := f.files[name]
		if now.err != nil {
			now.pods, now.everRead = before.pods, before.everRead
			files[name] = now
		}
		f.logFile(name, before.err, now.err)
	}
	f.files = files
	if merged := merge(files); !reflect.DeepEqual(merged, f.snapshot) {
		f.snapshot = merged
		f.changes.notify()
	}
	return nil
}

// dangling tells a symbolic link to nowhere (in the middle of a swap, or broken) from a file that is gone.
func dangling(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// logFile reports each change of a file's state once.
func (f *Folder) logFile(name string, before, now error) {
	switch {
	case now != nil && (before == nil || before.Error() != now.Error()):
		f.log.Error(now, "bad pod manifest; what it held last stays in force", "file", name)
	case now == nil && before != nil:
		f.log.Info("pod manifest is readable again", "file", name)
	}
}

// merge makes one list of all files. Where two hold the same pod, the file that sorts first wins.
func merge(files map[string]manifest) Snapshot {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	s := Snapshot{Complete: true}
	owner := map[string]string{} // UID and namespace/name, to the file
	for _, name := range names {
		m := files[name]
		if m.err != nil {
			s.Problems = append(s.Problems, m.err)
			s.Complete = s.Complete && m.everRead
		}
		for _, pod := range m.pods {
			first, ok := owner[pod.UID]
			if !ok {
				first, ok = owner[pod.String()]
			}
			if ok {
				s.Problems = append(s.Problems, fmt.Errorf("read manifest %s: metadata: pod %s is already in %s", name, pod, first))
				continue
			}
			owner[pod.UID], owner[pod.String()] = name, name
			s.Pods = append(s.Pods, pod)
		}
	}
	slices.SortFunc(s.Pods, compare)
	return s
}
