// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

func ips(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// find scans once and returns names of devices.
func (n *node) find(q Query) ([]string, Found, error) {
	n.t.Helper()
	f, err := NewFinder(n.dir)
	n.must(err, "new finder")
	defer f.Close()
	s, err := f.Scan(false)
	n.must(err, "scan")
	defer s.Close()
	found, err := s.Find(q)
	if found.Told {
		n.t.Errorf("%+v: told, and there are no results", found)
	}
	var names []string
	for _, d := range found.Devices {
		names = append(names, d.Name)
		if !s.Same(d) {
			n.t.Errorf("%s is not the same as itself", d.Name)
		}
	}
	return names, found, err
}

func (n *node) want(q Query, names ...string) Found {
	n.t.Helper()
	got, found, err := n.find(q)
	if err != nil {
		n.t.Errorf("Find(%v): %v", q, err)
	}
	if diff := cmp.Diff(names, got); diff != "" {
		n.t.Errorf("Find(%v): devices (-want +got):\n%s", q, diff)
	}
	return found
}

func TestFindByAddressAndPath(t *testing.T) {
	inNode(t, func(n *node) {
		a, b := n.pod("a", nil), n.pod("b", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.2/24", "fd00:1::2/64")
		n.veth("veth-b", "eth0", b, "10.1.0.3/24", "fd00:1::3/64")
		n.must(os.WriteFile(filepath.Join(n.dir, "junk"), []byte("not a namespace"), 0o600), "write junk")
		n.must(os.Symlink(filepath.Join(n.dir, "b"), filepath.Join(n.dir, "b-again")), "make symlink")

		n.want(Query{IPs: ips("10.1.0.2")}, "veth-a")
		n.want(Query{IPs: ips("10.1.0.3")}, "veth-b")
		n.want(Query{IPs: ips("fd00:1::3")}, "veth-b")
		n.want(Query{IPs: ips("192.0.2.1", "fd00:1::2")}, "veth-a")
		n.want(Query{Netns: filepath.Join(n.dir, "b")}, "veth-b")
		n.want(Query{Netns: filepath.Join(n.dir, "a"), IPs: ips("10.1.0.3")}, "veth-a") // a path goes before addresses
	})
}

func TestFindAllInterfacesOfAPod(t *testing.T) {
	inNode(t, func(n *node) {
		pod := n.pod("multus", nil)
		n.veth("veth-0", "eth0", pod, "10.1.0.2/24")
		n.veth("veth-1", "net1", pod, "10.2.0.2/24")
		n.want(Query{IPs: ips("10.1.0.2")}, "veth-0", "veth-1")
	})
}

func TestFindNothing(t *testing.T) {
	inNode(t, func(n *node) {
		empty := n.pod("empty", nil)
		_ = empty
		for name, q := range map[string]Query{
			"no address":   {},
			"unknown":      {IPs: ips("10.9.9.9")},
			"loopback":     {IPs: ips("127.0.0.1")},
			"missing path": {Netns: filepath.Join(n.dir, "none")},
			"not netns":    {Netns: "/proc/self/ns/uts"},
			"not nsfs":     {Netns: "/etc/passwd"},
		} {
			_, _, err := n.find(q)
			var notFound *NotFoundError
			if !errors.As(err, &notFound) || !Temporary(err) {
				n.t.Errorf("%s: %v; want a temporary *NotFoundError", name, err)
			}
		}
		_, _, err := n.find(Query{Netns: filepath.Join(n.dir, "empty")})
		var noVeth *NoHostVethError
		if !errors.As(err, &noVeth) || !Temporary(err) {
			n.t.Errorf("empty namespace: %v; want a temporary *NoHostVethError", err)
		}
	})
}

func TestFindRefusesWhatIsNoHostVeth(t *testing.T) {
	inNode(t, func(n *node) {
		// macvlan on a device of the node
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "up0"
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up1"}), "add uplink")
		up, err := netlink.LinkByName("up0")
		n.must(err, "find uplink")
		mac := n.pod("mac", nil)
		attrs = netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex, attrs.Namespace = "mv0", up.Attrs().Index, netlink.NsFd(mac)
		n.must(netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}), "add macvlan")
		h, err := netlink.NewHandleAt(mac)
		n.must(err, "open handle")
		defer h.Close()
		n.address(h, "mv0", "10.3.0.2/24")
		n.refused(ips("10.3.0.2"), "mv0 (macvlan)")

		// the same pod, with a veth as well: held in part, and told so
		n.veth("veth-m", "net1", mac, "10.4.0.2/24")
		if found := n.want(Query{IPs: ips("10.3.0.2")}, "veth-m"); !cmp.Equal(found.Unheld, []string{"mv0 (macvlan)"}) {
			n.t.Errorf("unheld: %v; want the macvlan", found.Unheld)
		}
	})
}

func TestFindRefusesPeerInAnotherNamespace(t *testing.T) {
	inNode(t, func(n *node) {
		router, pod := n.pod("router", nil), n.pod("pod", nil)
		// Give the node devices whose ifindexes the pair's ends have elsewhere: an ifindex alone would find these.
		for _, name := range []string{"decoy0", "decoy1", "decoy2"} {
			n.veth(name, name, router)
		}
		h, err := netlink.NewHandleAt(router)
		n.must(err, "open handle")
		defer h.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "inner"
		n.must(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod)}), "add veth between namespaces")
		p, err := netlink.NewHandleAt(pod)
		n.must(err, "open handle")
		defer p.Close()
		n.address(p, "eth0", "10.5.0.2/24")
		n.refused(ips("10.5.0.2"), "eth0 (veth to another namespace)")
	})
}

func (n *node) refused(addresses []netip.Addr, want ...string) {
	n.t.Helper()
	names, _, err := n.find(Query{IPs: addresses})
	var noVeth *NoHostVethError
	if !errors.As(err, &noVeth) || Temporary(err) {
		n.t.Errorf("Find(%v) = %v, %v; want a lasting *NoHostVethError", addresses, names, err)
		return
	}
	if diff := cmp.Diff(want, noVeth.Interfaces); diff != "" {
		n.t.Errorf("interfaces (-want +got):\n%s", diff)
	}
}

func TestFindHostNetwork(t *testing.T) {
	inNode(t, func(n *node) {
		_, _, err := n.find(Query{Netns: "/proc/thread-self/ns/net"})
		if !errors.Is(err, ErrHostNetwork) || Temporary(err) {
			n.t.Errorf("own namespace: %v; want ErrHostNetwork", err)
		}
	})
}

func TestFindDuplicateAddress(t *testing.T) {
	inNode(t, func(n *node) {
		// A dead sandbox that still holds the address, its veth gone.
		n.pod("dead", func(h *netlink.Handle) { n.address(h, "lo", "10.6.0.2/32") })
		alive := n.pod("live", nil)
		n.veth("veth-l", "eth0", alive, "10.6.0.2/24")
		n.want(Query{IPs: ips("10.6.0.2")}, "veth-l")

		other := n.pod("other", nil)
		n.veth("veth-o", "eth0", other, "10.6.0.2/24")
		_, _, err := n.find(Query{IPs: ips("10.6.0.2")})
		var ambiguous *AmbiguousError
		if !errors.As(err, &ambiguous) || len(ambiguous.Paths) != 2 {
			n.t.Errorf("two living namespaces with one address: %v; want *AmbiguousError", err)
		}
	})
}

func TestSameTellsReusedNames(t *testing.T) {
	inNode(t, func(n *node) {
		f, err := NewFinder(n.dir)
		n.must(err, "new finder")
		defer f.Close()
		a, b := n.pod("a", nil), n.pod("b", nil)
		n.veth("veth-x", "eth0", a, "10.1.0.2/24")
		scan := func(q Query) (*Scan, Found) {
			s, err := f.Scan(false)
			n.must(err, "scan")
			found, err := s.Find(q)
			n.must(err, "find")
			return s, found
		}
		first, before := scan(Query{IPs: ips("10.1.0.2")})
		first.Close()
		link, err := netlink.LinkByName("veth-x")
		n.must(err, "find veth-x")
		n.must(netlink.LinkDel(link), "delete veth-x")
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = "veth-x", link.Attrs().Index
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(b)}), "add it anew")
		s, err := f.Scan(false)
		n.must(err, "scan")
		defer s.Close()
		if s.Same(before.Devices[0]) {
			n.t.Error("a new device with the old one's name and ifindex passes for the old one")
		}
	})
}

func TestWatch(t *testing.T) {
	inNode(t, func(n *node) {
		f, err := NewFinder(n.dir)
		n.must(err, "new finder")
		defer f.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		ready, links, files := make(chan struct{}), make(chan struct{}, 100), make(chan struct{}, 100)
		came, filtered := make(chan Link, 100), make(chan int, 100)
		ended := make(chan error, 2)
		go func() {
			ended <- f.WatchNode(ctx, told{ready: func() { close(ready) }, came: func(l Link) { came <- l },
				filtered: func(ifindex int) { filtered <- ifindex }, changed: func(c rtnl.Change) {
					if c == rtnl.ChangeLink {
						select {
						case links <- struct{}{}:
						default:
						}
					}
				}})
		}()
		go func() { ended <- f.WatchNetns(ctx, func() { files <- struct{}{} }) }()
		<-ready
		n.scan(f, false)                   // what comes is told from what was there
		time.Sleep(100 * time.Millisecond) // the folder's watch has no ready signal
		pod := n.pod("a", nil)
		n.veth("veth-a", "eth0", pod)
		for name, ch := range map[string]chan struct{}{"device": links, "namespace": files} {
			select {
			case <-ch:
			case <-ctx.Done():
				n.t.Errorf("no notice of a new %s", name)
			}
		}
		link, err := netlink.LinkByName("veth-a")
		n.must(err, "find veth-a")
		if l := receive(ctx, came); l.Name != "veth-a" || l.Index != link.Attrs().Index || l.PeerN < 0 {
			n.t.Errorf("%+v came; want veth-a, which leads to the pod", l)
		}
		n.must(netlink.LinkSetMTU(link, 1400), "change veth-a") // which does not make it come again
		n.must(netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}), "add clsact")
		if index := receive(ctx, filtered); index != link.Attrs().Index || len(came) > 0 {
			n.t.Errorf("a qdisc on device %d, %d devices came; want one on %d, and none", index, len(came), link.Attrs().Index)
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				n.t.Errorf("watch ended with %v", err)
			}
		}
	})
}

// receive gives up with ctx.
func receive[T any](ctx context.Context, from <-chan T) (got T) {
	select {
	case got = <-from:
	case <-ctx.Done():
	}
	return got
}

// TestWhole: what came into a pod, or left it, shows from the node's side.
func TestWhole(t *testing.T) {
	inNode(t, func(n *node) {
		pod, other := n.pod("a", nil), n.pod("b", nil)
		n.veth("veth-b", "eth0", other, "10.1.0.3/24") // so that ids of namespaces differ
		n.veth("veth-a", "eth0", pod, "10.1.0.2/24")
		h, err := netlink.NewHandleAt(pod)
		n.must(err, "open handle")
		defer h.Close()
		f, err := NewFinder(n.dir)
		n.must(err, "new finder")
		defer f.Close()
		whole := func(found Found) bool {
			n.t.Helper()
			s := n.scan(f, false)
			defer s.Close()
			return s.Whole(found)
		}
		found := n.want(Query{IPs: ips("10.1.0.2")}, "veth-a")
		n.want(Query{IPs: ips("10.1.0.3")}, "veth-b")
		if !whole(found) {
			n.t.Error("not whole, and nothing changed")
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		n.must(h.LinkAdd(bridge), "add bridge")
		if whole(found) {
			n.t.Error("whole with a further interface")
		}
		more := n.want(Query{IPs: ips("10.1.0.2")}, "veth-a")
		if !whole(more) {
			n.t.Error("not whole after another look")
		}
		n.must(h.LinkDel(bridge), "delete bridge")
		if whole(more) || !whole(found) {
			n.t.Error("whole without an interface that it had, or not whole with what it had at first")
		}
		if whole(Found{}) || whole(Found{Devices: found.Devices}) {
			n.t.Error("nothing is whole")
		}
	})
}

// TestFindSeveralAtOnce: as the loop does.
func TestFindSeveralAtOnce(t *testing.T) {
	inNode(t, func(n *node) {
		const pods = 12
		var group errgroup.Group
		f, err := NewFinder(n.dir)
		n.must(err, "new finder")
		defer f.Close()
		for i := range pods {
			n.veth(fmt.Sprintf("veth-%d", i), "eth0", n.pod(fmt.Sprintf("p%d", i), nil), fmt.Sprintf("10.1.0.%d/24", 10+i))
		}
		s := n.scan(f, false)
		defer s.Close()
		for i := range pods {
			for _, q := range []Query{{IPs: ips(fmt.Sprintf("10.1.0.%d", 10+i))}, {Netns: filepath.Join(n.dir, fmt.Sprintf("p%d", i))}} {
				group.Go(func() error {
					found, err := s.Find(q)
					if err != nil || len(found.Devices) != 1 || found.Devices[0].Name != fmt.Sprintf("veth-%d", i) || !s.Current(found.Devices) || !s.Whole(found) {
						return fmt.Errorf("%+v: found %+v, %w", q, found, err)
					}
					return nil
				})
			}
		}
		n.must(group.Wait(), "find")
	})
}
