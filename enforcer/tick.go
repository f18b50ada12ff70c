// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tick is a ticker of the kernel's (timerfd_create(2)). For each timer of Go's own that ends, and each system call that may
// wait, Go wakes its monitor thread, which sleeps several times for 20 µs before it rests again: in an agent at rest that was a
// third of all processor time.
type tick struct {
	file *os.File
	conn syscall.RawConn
}

func newTick(every time.Duration) (*tick, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create timer: %w", err)
	}
	file := os.NewFile(uintptr(fd), "timer")
	spec := unix.NsecToTimespec(every.Nanoseconds())
	err = unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: spec, Value: spec}, nil)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("set timer: %w", err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("wait for timer: %w", err)
	}
	return &tick{file, conn}, nil
}

// wait returns at the next tick. Its error wraps os.ErrDeadlineExceeded once stop was called.
func (t *tick) wait() error {
	var errno unix.Errno
	err := t.conn.Read(func(fd uintptr) (done bool) {
		var ticks uint64
		_, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&ticks)), unsafe.Sizeof(ticks)) //nolint:gosec // read(2), which never waits here
		return errno != unix.EAGAIN
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("wait for timer: %w", err)
	}
	return nil
}

// stop ends a wait, and all later ones. It may be called from any goroutine.
func (t *tick) stop() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) }

func (t *tick) close() { _ = t.file.Close() }
