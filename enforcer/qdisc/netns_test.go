// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box is a private network namespace that plays the machine, with veths to another one that plays the rest.
type box struct {
	t       *testing.T
	outside netns.NsHandle
	dir     string
}

// inBox runs f on a thread in a fresh network namespace; the thread is thrown away with it.
func inBox(t *testing.T, f func(b *box)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true lets no test skip")
		}
		t.Skip("needs root: makes network namespaces")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		outside, err := netns.New()
		if err != nil {
			t.Errorf("make network namespace: %v", err)
			return
		}
		defer outside.Close()
		inside, err := netns.New()
		if err != nil {
			t.Errorf("make network namespace: %v", err)
			return
		}
		defer inside.Close()
		f(&box{t: t, outside: outside, dir: t.TempDir()})
	}()
	<-done
}

// needFq skips what this kernel cannot do; KUBEPACE_REQUIRE_FQ=true (a virtual machine whose kernel has fq) makes that
// a failure.
func needFq(t *testing.T) {
	t.Helper()
	err := Probe()
	var missing *MissingError
	switch {
	case err == nil:
	case os.Getenv("KUBEPACE_REQUIRE_FQ") == "true" || (os.Geteuid() == 0 && !errors.As(err, &missing)):
		t.Fatalf("probe of fq: %v", err)
	default:
		t.Skipf("kernel %v", err)
	}
}

func (b *box) must(err error, what string) {
	b.t.Helper()
	if err != nil {
		b.t.Errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}

// uplink adds a veth to the outside and, where gateway is set, the default route over it.
func (b *box) uplink(name, cidr, gateway string) netlink.Link {
	b.t.Helper()
	attrs := named(name)
	attrs.NumTxQueues, attrs.NumRxQueues = 2, 2
	link := b.addLink(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(b.outside)})
	if cidr != "" {
		b.address(link, cidr)
	}
	if gateway != "" {
		b.must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}), "add default route")
	}
	return link
}

func (b *box) manager(opts Options) *Manager {
	b.t.Helper()
	opts.RunDir, opts.Log = b.dir, testr.New(b.t)
	m, err := New(opts)
	b.must(err, "new manager")
	return m
}

func (b *box) tree(m *Manager, link netlink.Link) tree {
	b.t.Helper()
	t, err := m.reload(link.Attrs().Index)
	b.must(err, "dump qdiscs")
	return t
}
