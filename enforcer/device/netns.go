// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// errNotNetns means that a path is something else than a network namespace.
var errNotNetns = errors.New("is not a network namespace")

// namespace is an open network namespace.
type namespace struct {
	path   string
	handle netns.NsHandle
	id     nsID
}

// nsID identifies a network namespace while somebody keeps it open.
type nsID struct{ dev, inode uint64 }

// openNamespace opens path, which may be anything: it is checked to be a network namespace before it is used.
func openNamespace(path string) (*namespace, error) {
	// O_NONBLOCK keeps a FIFO from hanging the agent.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	ns, err := checkNamespace(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	ns.path = path
	return ns, nil
}

// ownNamespace opens the network namespace of the calling thread.
func ownNamespace() (*namespace, error) {
	ns, err := openNamespace(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return ns, nil
}

// checkNamespace takes fd over where it returns no error.
func checkNamespace(fd int) (*namespace, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, fmt.Errorf("statfs: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, errNotNetns
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, errNotNetns
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	return &namespace{handle: netns.NsHandle(fd), id: nsID{st.Dev, st.Ino}}, nil
}

func (n *namespace) Close() { n.handle.Close() }

// addresses returns every address in the namespace but loopback and link-local ones, which all namespaces share.
func (n *namespace) addresses() ([]netip.Addr, error) {
	h, err := rtnl.Open(n.handle)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	list, err := rtnl.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses in %s: %w", n.path, err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			addrs = append(addrs, ip)
		}
	}
	return addrs, nil
}

// missing tells a namespace that is not there (yet, or any more) from one that cannot be read.
func missing(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotNetns)
}
