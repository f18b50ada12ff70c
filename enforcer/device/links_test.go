// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// told is a Watcher of functions; nil ones are not called.
type told struct {
	ready    func()
	came     func(Link)
	filtered func(ifindex int)
	changed  func(rtnl.Change)
}

func (w told) Ready() { w.ready() }

func (w told) Came(l Link) {
	if w.came != nil {
		w.came(l)
	}
}

func (w told) Filtered(ifindex int) {
	if w.filtered != nil {
		w.filtered(ifindex)
	}
}

func (w told) Changed(c rtnl.Change) {
	if w.changed != nil {
		w.changed(c)
	}
}

// watched runs f with a finder that is told of the node's devices; settled waits until all is told that was done.
func watched(n *node, f func(finder *Finder, settled func())) {
	finder, err := NewFinder(n.dir)
	n.must(err, "new finder")
	defer finder.Close()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	ready, ended := make(chan struct{}), make(chan error, 1)
	links := make(chan struct{}, 1000)
	go func() {
		ended <- finder.WatchNode(ctx, told{ready: func() { close(ready) }, changed: func(c rtnl.Change) {
			if c == rtnl.ChangeLink {
				links <- struct{}{}
			}
		}})
	}()
	<-ready
	f(finder, func() {
		for {
			select {
			case <-links:
			case <-time.After(300 * time.Millisecond):
				return
			}
		}
	})
	cancel()
	n.must(<-ended, "watch")
}

func (n *node) scan(f *Finder, anew bool) *Scan {
	n.t.Helper()
	s, err := f.Scan(anew)
	n.must(err, "scan")
	n.t.Cleanup(s.Close)
	return s
}

// TestNoticesTellWhatAListWould: devices that come, change, move and go are known without a list as a list has them.
func TestNoticesTellWhatAListWould(t *testing.T) {
	inNode(t, func(n *node) {
		watched(n, func(f *Finder, settled func()) {
			n.scan(f, false)
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
			n.must(netlink.LinkAdd(bridge), "add bridge")
			for i := range 5 {
				name := fmt.Sprintf("p%d", i)
				n.veth("veth-"+name, "eth0", n.pod(name, nil), fmt.Sprintf("10.1.0.%d/24", 2+i))
				link, err := netlink.LinkByName("veth-" + name)
				n.must(err, "find veth")
				n.must(netlink.LinkSetMaster(link, bridge), "add a port to the bridge")
				switch i {
				case 1:
					n.must(netlink.LinkSetNoMaster(link), "take the port away") // no device is deleted
				case 2:
					n.must(netlink.LinkDel(link), "delete a device")
				case 3:
					n.must(netlink.LinkSetDown(link), "set down")
					n.must(netlink.LinkSetName(link, "renamed"), "rename")
				}
			}
			settled()
			got, want := n.scan(f, false).links, n.scan(f, true).links
			if !maps.Equal(got, want) || len(got) < 5 {
				t.Errorf("by notices %v\nlisted %v", got, want)
			}
		})
	})
}

// TestFoundByNoticesIsCurrent: a pod that was found without a list is not looked for again, and a device that was put in
// its place is not taken for it.
func TestFoundByNoticesIsCurrent(t *testing.T) {
	inNode(t, func(n *node) {
		watched(n, func(f *Finder, settled func()) {
			n.scan(f, false)
			a := n.pod("a", nil)
			n.veth("veth-a", "eth0", a, "10.1.0.2/24")
			// At once: the kernel's notices are still on their way.
			found, err := n.scan(f, false).Find(Query{IPs: ips("10.1.0.2")})
			n.must(err, "find")
			settled()
			if s := n.scan(f, false); !s.Current(found.Devices) {
				t.Errorf("%+v is not current among %+v", found.Devices, s.links)
			}
			n.veth("veth-b", "eth1", a, "10.2.0.2/24")
			settled()
			if n.scan(f, false).Current(found.Devices) {
				t.Error("the pod has one more interface, and what was found first is still all of it")
			}
			found, err = n.scan(f, false).Find(Query{IPs: ips("10.1.0.2")})
			n.must(err, "find again")
			if s := n.scan(f, false); len(found.Devices) != 2 || !s.Current(found.Devices) {
				t.Errorf("found %+v; want both of %+v, and them current", found.Devices, s.links)
			}
			link, err := netlink.LinkByName("veth-b")
			n.must(err, "find veth-b")
			n.must(netlink.LinkDel(link), "delete veth-b")
			settled()
			if n.scan(f, false).Current(found.Devices) {
				t.Error("a deleted device is current")
			}
		})
	})
}

// TestNoticesThatRanOver: the kernel tells once that it drops notices, and goes on dropping until all are read.
func TestNoticesThatRanOver(t *testing.T) {
	inNode(t, func(n *node) {
		finder, err := NewFinder(n.dir)
		n.must(err, "new finder")
		defer finder.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ready, ended, whole := make(chan struct{}), make(chan error, 1), make(chan struct{})
		hold, lost := make(chan struct{}), make(chan struct{}, 1)
		var once sync.Once
		go func() {
			ended <- finder.WatchNode(ctx, told{ready: func() { close(ready) }, changed: func(c rtnl.Change) {
				switch c {
				case rtnl.ChangeLink:
					<-hold
				case rtnl.ChangeLost:
					lost <- struct{}{}
					time.Sleep(100 * time.Millisecond) // the queue is not read meanwhile
				case rtnl.ChangeWhole:
					once.Do(func() { close(whole) })
				}
			}})
		}()
		<-ready
		n.scan(finder, false)
		n.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "busy"}}), "add device")
		busy, err := netlink.LinkByName("busy")
		n.must(err, "find device")
		for i := range 3000 {
			n.must(netlink.LinkSetMTU(busy, 1400+i%100), "change device")
		}
		close(hold)
		<-lost
		n.scan(finder, false)
		n.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "unseen"}}), "add a device of which nobody is told")
		if got, want := n.scan(finder, false).links, n.scan(finder, true).links; !maps.Equal(got, want) {
			t.Errorf("while notices are lost: known %v\nlisted %v", got, want)
		}
		select {
		case <-whole:
		case <-ctx.Done():
			t.Error("never told that notices are whole again")
		}
		if !finder.links.watched {
			t.Error("devices are listed for ever after")
		}
		if got, want := n.scan(finder, false).links, n.scan(finder, true).links; !maps.Equal(got, want) {
			t.Errorf("by notices %v\nlisted %v", got, want)
		}
		cancel()
		n.must(<-ended, "watch")
	})
}

// TestOtherEndMovedWithoutNotice: of a pair whose one end is moved into the pod, the end that stays is told of by nobody.
func TestOtherEndMovedWithoutNotice(t *testing.T) {
	inNode(t, func(n *node) {
		watched(n, func(f *Finder, settled func()) {
			n.veth("veth-b", "eth0", n.pod("b", nil), "10.1.0.3/24")
			other, err := n.scan(f, false).Find(Query{IPs: ips("10.1.0.3")})
			n.must(err, "find the other pod")
			a := n.pod("a", nil)
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "veth-a"
			n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0"}), "add a pair")
			settled()
			link, err := netlink.LinkByName("eth0")
			n.must(err, "find the other end")
			n.must(netlink.LinkSetNsFd(link, int(a)), "move it")
			h, err := netlink.NewHandleAt(a)
			n.must(err, "open handle")
			defer h.Close()
			n.address(h, "eth0", "10.1.0.2/24")
			settled()
			s := n.scan(f, false)
			if !s.Current(other.Devices) {
				t.Errorf("%+v is not current", other.Devices)
			}
			found, err := s.Find(Query{IPs: ips("10.1.0.2")})
			n.must(err, "find")
			if !s.Current(found.Devices) || !n.scan(f, false).Current(found.Devices) {
				t.Errorf("%+v is not current", found.Devices)
			}
		})
	})
}

// TestLinksAreListedWhenNoticesWereLost: and while nobody watches, and where they are asked for anew.
func TestLinksAreListedWhenNoticesWereLost(t *testing.T) {
	lists := 0
	var during func()
	list := func() ([]netlink.Link, error) {
		lists++
		if during != nil {
			during()
		}
		return []netlink.Link{&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "listed"}}}, nil
	}
	var l links
	check := func(what string, anew bool, want int, name string) {
		t.Helper()
		before := lists
		devices, err := l.get(anew, list)
		if err != nil || lists-before != want || devices[7].Name != name {
			t.Errorf("%s: %v, %v after %d lists; want %q after %d", what, devices, err, lists-before, name, want)
		}
	}
	check("nobody watches", false, 1, "listed")
	check("nobody watches still", false, 1, "listed")
	l.watch(true)
	check("somebody watches", false, 1, "listed")
	check("known", false, 0, "listed")
	check("anew", true, 1, "listed")
	later := newLink(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "later"}})
	during = func() { l.put(later) }
	check("a notice meanwhile", true, 1, "later")
	during = nil
	check("which is kept", false, 0, "later")
	l.lose()
	check("notices were lost", false, 1, "listed")
	during = l.lose
	check("notices are lost meanwhile", true, 1, "listed")
	during = nil
	check("and so it is listed again", false, 1, "listed")
	broken := errors.New("no list")
	if _, err := l.get(true, func() ([]netlink.Link, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("get: %v; want %v", err, broken)
	}
	check("after a list that failed", false, 1, "listed")
	devices, _ := l.get(false, list)
	delete(devices, 7)
	check("the copy is the caller's", false, 0, "listed")
	l.watch(false)
	check("nobody watches any more", false, 1, "listed")
}
