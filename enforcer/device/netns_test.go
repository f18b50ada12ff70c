// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needRoot skips a test that needs network namespaces of its own; in CI a skip would hide that nothing was tested.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and CI=true lets no test skip")
	}
	t.Skip("needs root: makes network namespaces")
}

// node is a private network namespace that plays the machine, and a folder of pods' namespaces.
type node struct {
	t   *testing.T
	dir string
	ns  netns.NsHandle
}

// inNode runs f on a thread in a fresh network namespace. The thread ends with f, and the namespace with its last
// reference, whatever f does.
func inNode(t *testing.T, f func(n *node)) {
	t.Helper()
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		ns, err := netns.New()
		if err != nil {
			t.Errorf("make network namespace: %v", err)
			return
		}
		defer ns.Close()
		f(&node{t: t, dir: t.TempDir(), ns: ns})
	}()
	<-done
}

// pod makes a network namespace, bind-mounted in the node's folder, and runs f in it.
func (n *node) pod(name string, f func(h *netlink.Handle)) netns.NsHandle {
	n.t.Helper()
	ns, err := netns.New()
	n.must(err, "make network namespace")
	path := filepath.Join(n.dir, name)
	n.must(os.WriteFile(path, nil, 0o600), "make mount point")
	n.must(unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "none", unix.MS_BIND, ""), "mount namespace")
	n.must(netns.Set(n.ns), "go back")
	n.t.Cleanup(func() {
		ns.Close()
		unix.Unmount(path, unix.MNT_DETACH) //nolint:errcheck // test
	})
	h, err := netlink.NewHandleAt(ns)
	n.must(err, "open handle")
	defer h.Close()
	if f != nil {
		f(h)
	}
	return ns
}

// veth joins the node (host) with a namespace (inside) and gives the inner end an address.
func (n *node) veth(host, inside string, ns netns.NsHandle, cidrs ...string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = host
	n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerNamespace: netlink.NsFd(ns)}), "add veth "+host)
	h, err := netlink.NewHandleAt(ns)
	n.must(err, "open handle")
	defer h.Close()
	n.address(h, inside, cidrs...)
}

func (n *node) address(h *netlink.Handle, name string, cidrs ...string) {
	n.t.Helper()
	link, err := h.LinkByName(name)
	n.must(err, "find "+name)
	n.must(h.LinkSetUp(link), "set up "+name)
	for _, cidr := range cidrs {
		ip, prefix, err := net.ParseCIDR(cidr)
		n.must(err, "parse "+cidr)
		prefix.IP = ip
		n.must(h.AddrAdd(link, &netlink.Addr{IPNet: prefix, Flags: unix.IFA_F_NODAD}), "add address "+cidr)
	}
}

// must ends the namespace's goroutine; t.Fatal may be called by the test's own only.
func (n *node) must(err error, what string) {
	n.t.Helper()
	if err != nil {
		n.t.Errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}
