// SPDX-License-Identifier: Apache-2.0

// Package cni reads the result cache of libcni: a file for each network of each pod sandbox, which every container
// runtime writes at the end of CNI ADD, before the pod's first container starts, and removes at CNI DEL. It tells
// which network namespace is whose, whatever the CNI, without an API server.
//
// The files may be stale (a sandbox that died without DEL, a node that was restarted), half written, or hostile.
// Package device verifies in the kernel whatever they say.
package cni

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
)

// DefaultDir is where containerd and CRI-O have libcni keep its results.
const DefaultDir = "/var/lib/cni/results"

const (
	// maxFile bounds one file: the largest part is the network's configuration, some kilobytes.
	maxFile = 1 << 20
	// maxFiles bounds memory and time on a node whose runtime never cleaned up. The newest count.
	maxFiles = 4096
	// unreadableFor is how old a bad file must be before it is a problem: libcni writes in place.
	unreadableFor = 2 * time.Second
)

// runtimeDirs are the names that container runtimes give to the folder of network namespaces, wherever the agent sees
// it.
var runtimeDirs = []string{"/var/run/netns", "/run/netns"}

// Cache follows the folder. Its methods may be called from any goroutine.
type Cache struct {
	dir       string
	netnsDirs []string
	log       logr.Logger
	changes   chan struct{}
	now       func() time.Time
	rescan    time.Duration

	mu       sync.Mutex
	files    map[string]file // by name
	overflow error           // more files than are read
	scanned  stamp           // of the folder, before it was read last
	view     *View           // nil after a change
}

// file is what is known of one file.
type file struct {
	stamp  stamp
	result result
	err    error // errNoPod, or why it is unreadable
}

// stamp tells whether a file is what it was.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// New reads the folder once; it need not exist. netnsDir is the folder of network namespaces: what the files say of
// namespaces elsewhere is not believed.
func New(dir, netnsDir string, log logr.Logger) *Cache {
	c := &Cache{
		dir: filepath.Clean(dir), netnsDirs: append([]string{filepath.Clean(netnsDir)}, runtimeDirs...), log: log,
		changes: make(chan struct{}, 1), now: time.Now, rescan: rescan, files: map[string]file{},
	}
	c.scan()
	return c
}

// Changes receives a value after the view changed; changes that nobody has read yet are merged.
func (c *Cache) Changes() <-chan struct{} { return c.changes }

// View is what the files say now.
func (c *Cache) View() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		c.view = c.build()
	}
	return c.view
}

func (c *Cache) build() *View {
	var results []result
	var problems []error
	for name, f := range c.files {
		switch {
		case f.err == nil:
			results = append(results, f.result)
		case !errors.Is(f.err, errNoPod) && c.now().Sub(f.stamp.modified) >= unreadableFor:
			problems = append(problems, fmt.Errorf("CNI result %q: %w", name, f.err))
		}
	}
	slices.SortFunc(problems, func(a, b error) int {
		if a.Error() < b.Error() {
			return -1
		}
		return 1
	})
	const most = 10 // of a broken disk nobody wants to read 4096 lines
	if more := len(problems) - most; more > 0 {
		problems = append(problems[:most], fmt.Errorf("%d more unreadable CNI results", more))
	}
	if c.overflow != nil {
		problems = append(problems, c.overflow)
	}
	return newView(results, problems)
}

// scan compares the whole folder with what is known; only what changed is read.
func (c *Cache) scan() {
	var before stamp
	if info, err := os.Stat(c.dir); err == nil {
		before = stampOf(info)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Error(err, "CNI results cannot be listed")
		return
	}
	type candidate struct {
		name  string
		stamp stamp
	}
	var list []candidate
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			list = append(list, candidate{entry.Name(), stampOf(info)})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scanned = before
	overflow := error(nil)
	if len(list) > maxFiles {
		overflow = fmt.Errorf("%d CNI results in %s: only the newest %d are read", len(list), c.dir, maxFiles)
		slices.SortFunc(list, func(a, b candidate) int { return b.stamp.modified.Compare(a.stamp.modified) })
		list = list[:maxFiles]
	}
	changed := (overflow == nil) != (c.overflow == nil)
	c.overflow = overflow
	there := make(map[string]bool, len(list))
	for _, l := range list {
		there[l.name] = true
		if known, ok := c.files[l.name]; !ok || known.stamp != l.stamp || known.err != nil {
			changed = c.read(l.name) || changed
		}
	}
	for name := range c.files {
		if !there[name] {
			delete(c.files, name)
			changed = true
		}
	}
	if changed {
		c.changed()
	}
}

// update looks at one file again.
func (c *Cache) update(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.files[name]; !known && len(c.files) >= 2*maxFiles {
		return // until the next scan
	}
	if c.read(name) {
		c.changed()
	}
}

func (c *Cache) changed() {
	c.view = nil
	select {
	case c.changes <- struct{}{}:
	default:
	}
}

// read replaces what is known of one file; it reports whether that changed anything. A file that turns bad says
// nothing any more: unlike a pod's limit, what it said is of no use without the sandbox that it belonged to.
func (c *Cache) read(name string) bool {
	before, known := c.files[name]
	data, stamp, err := readFile(filepath.Join(c.dir, name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotRegular) {
		delete(c.files, name)
		return known
	}
	f := file{stamp: stamp, err: err}
	if err == nil {
		f.result, f.err = parse(data, c.netnsDirs)
		f.result.written = stamp.modified
	}
	c.files[name] = f
	if f.err != nil && before.err != nil && before.stamp == f.stamp {
		// The same bad file: only its age may make it a problem.
		return !errors.Is(f.err, errNoPod) && c.now().Sub(f.stamp.modified) >= unreadableFor
	}
	if f.err != nil {
		c.log.V(1).Info("CNI result not used", "file", name, "reason", f.err.Error())
	}
	return !known || f.err == nil || before.err == nil
}

var errNotRegular = errors.New("is not a regular file")

func readFile(path string) ([]byte, stamp, error) {
	// O_NONBLOCK keeps a FIFO from hanging the agent.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, stamp{}, errNotRegular
	}
	if err != nil {
		return nil, stamp{}, fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, stamp{}, errNotRegular
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("is larger than %d bytes", maxFile)
	}
	return data, stampOf(info), err
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}
