// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that lives as long as this object is open, and whatever sockets and pins keep it.
// All methods may be called from any goroutine.
type Namespace struct {
	Name string // for messages, and the file name of Pin

	handle netns.NsHandle
	links  *netlink.Handle

	mu     sync.Mutex
	closed bool
	pins   []string
}

// NewNamespace makes a namespace with the loopback device up. The caller's own thread stays where it is.
func NewNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name, handle: netns.None()}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		handle, err := netns.Get()
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		n.handle = handle
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	n.links, err = netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket in %s: %w", name, err), n.handle.Close())
	}
	if err := n.Up("lo"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// onThread runs fn on a thread of its own that ends with it: goroutines that never unlock their thread take it along,
// so a changed namespace cannot leak into other goroutines.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("function panicked or called runtime.Goexit")
		defer func() { done <- err }()
		err = fn()
	}()
	return <-done
}

// Do runs fn inside the namespace and returns its error. Sockets that fn opens stay in the namespace afterwards and
// may be used anywhere. Goroutines that fn starts are not inside: let each call Do itself.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return fn()
	})
}

// Netlink is a route socket in the namespace, closed with it.
func (n *Namespace) Netlink() *netlink.Handle { return n.links }

// Handle is the open namespace, for APIs that want a file descriptor; it belongs to the Namespace.
func (n *Namespace) Handle() netns.NsHandle { return n.handle }

// Link finds a device by its name.
func (n *Namespace) Link(name string) (netlink.Link, error) {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find device %s in %s: %w", name, n.Name, err)
	}
	return link, nil
}

// Up sets a device up.
func (n *Namespace) Up(name string) error {
	link, err := n.Link(name)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up in %s: %w", name, n.Name, err)
	}
	return nil
}

// Sysctl writes a setting of the namespace, named as sysctl(8) does: "net.ipv4.ip_forward".
func (n *Namespace) Sysctl(name, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	return n.Do(func() error {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s=%s in %s: %w", name, value, n.Name, err)
		}
		return nil
	})
}

// Pin makes the namespace a file dir/Name, the way container runtimes do in /var/run/netns, and returns its path.
// Close removes it.
func (n *Namespace) Pin(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("pin namespace %s: %w", n.Name, err)
	}
	path := filepath.Join(dir, n.Name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return "", fmt.Errorf("pin namespace %s: %w", n.Name, err)
	}
	_ = file.Close()
	source := fmt.Sprintf("/proc/self/fd/%d", int(n.handle))
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return "", errors.Join(fmt.Errorf("bind namespace %s to %s: %w", n.Name, path, err), os.Remove(path))
	}
	n.mu.Lock()
	n.pins = append(n.pins, path)
	n.mu.Unlock()
	return path, nil
}

// Close removes the pins and lets go of the namespace; the kernel ends it, and the devices in it, once the sockets
// in it are closed too. Closing again does nothing.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	for _, path := range n.pins {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
		errs = append(errs, os.Remove(path))
	}
	if n.links != nil {
		n.links.Close()
	}
	errs = append(errs, n.handle.Close())
	return errors.Join(errs...)
}
