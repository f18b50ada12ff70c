// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"time"

	"golang.org/x/sys/unix"
)

// stamp tells a file that was read from one that has changed since, so that a folder of hundreds is not parsed again
// and again. The zero value is like no other.
type stamp struct {
	dev, inode    uint64
	size          int64
	changed       unix.Timespec // of content or inode; nobody can set it
	settledByThen bool
}

// racy is how young a change may be for a second one to bear the same time: the kernel's clock for files ticks, and
// not in network filesystems alone. Files that young are read again.
const racy = 2 * time.Second

// stampOf follows symbolic links. It is taken before the file is read.
func stampOf(path string) stamp {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}
	}
	age := time.Since(time.Unix(st.Ctim.Unix()))
	return stamp{dev: st.Dev, inode: st.Ino, size: st.Size, changed: st.Ctim, settledByThen: age > racy}
}

// same reports whether a file that was read with the earlier stamp holds the same now.
func (s stamp) same(earlier stamp) bool {
	s.settledByThen = earlier.settledByThen
	return earlier.settledByThen && s == earlier
}
