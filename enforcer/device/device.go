// SPDX-License-Identifier: Apache-2.0

// Package device finds the host-side devices of a pod without asking the CNI: it goes from the pod's network
// namespace (named by a path, by the CNI result cache, or found by the pod's address) through each interface in it to
// the peer on the node.
// Both ends must name each other, and each other's namespace: an ifindex alone means nothing outside its namespace.
package device

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// DefaultNetnsDir is where container runtimes and ip-netns(8) mount network namespaces.
const DefaultNetnsDir = "/var/run/netns"

// Query says how a pod is found: by Netns alone where it is set, else by the newest of Sandboxes whose namespace is
// there and is still the sandbox's, else by IPs.
type Query struct {
	UID       string // who asks: a namespace that is known to be another's is not taken for having the address
	Netns     string // path
	Sandboxes []cni.Sandbox
	IPs       []netip.Addr
	// Left: the runtime told of the pod's network when it was there. If it makes another it tells of that as well: IPs
	// are not looked for, which takes a look into every namespace, for each pod that has just ended.
	Left bool
	// Brief: a pod that the runtime told of may be found from the node's side alone; see Found.Outside.
	Brief bool
}

// Equal reports whether two queries ask for the same pod by the same.
func (q Query) Equal(o Query) bool {
	return q.UID == o.UID && q.Netns == o.Netns && slices.Equal(q.IPs, o.IPs) && slices.EqualFunc(q.Sandboxes, o.Sandboxes, cni.Sandbox.Equal)
}

// Found is what leads out of a pod.
type Found struct {
	// Devices are the host-side ends, sorted by ifindex; at least one.
	Devices []Link
	// Unheld are interfaces of the pod that lead elsewhere and cannot be held, such as "net1 (macvlan)".
	Unheld []string
	// Told: they were found by what the container runtime told of the pod's network.
	Told bool
	// Outside: nobody has looked into the pod, which may have interfaces that cannot be held as well. Find again, not Brief.
	Outside bool
	// inside are the interfaces of the pod's namespace; see Scan.Whole.
	inside []interfaceID
}

// interfaceID tells one interface of a namespace from another.
type interfaceID struct {
	index      int
	name, kind string
}

func interfacesOf(links []netlink.Link) []interfaceID {
	list := make([]interfaceID, len(links))
	for i, l := range links {
		list[i] = interfaceID{l.Attrs().Index, l.Attrs().Name, l.Type()}
	}
	slices.SortFunc(list, func(a, b interfaceID) int { return a.index - b.index })
	return list
}

// Link is one host-side device and what tells it from a later one with the same ifindex or name.
type Link struct {
	datapath.Device
	Type  string // "veth" or "netkit"
	MAC   string
	Peer  int // ifindex of the pod's end, in the pod's namespace
	PeerN int // id of the pod's namespace, as the agent's namespace counts
}

// Finder looks from one network namespace: the one of the thread that called NewFinder. Its methods may be called
// from any thread, by one goroutine at a time; those of a Scan by several.
type Finder struct {
	dir    string
	owners func() *cni.View // may be nil
	own    *namespace
	links  links
	host   *rtnl.Shared // of own
}

// NewFinder opens the caller's network namespace. An empty dir means DefaultNetnsDir; it need not exist.
func NewFinder(dir string) (*Finder, error) {
	if dir == "" {
		dir = DefaultNetnsDir
	}
	own, err := ownNamespace()
	if err != nil {
		return nil, err
	}
	host, err := rtnl.Share(own.handle)
	if err != nil {
		own.Close()
		return nil, err
	}
	return &Finder{dir: dir, own: own, host: host}, nil
}

// Believe makes scans ask the CNI result cache whose a namespace is. Call it before the first scan.
func (f *Finder) Believe(results *cni.Cache) { f.owners = results.View }

// Close lets go of the finder's sockets and namespace.
func (f *Finder) Close() {
	f.host.Close()
	f.own.Close()
}

// Scan starts a round of look-ups. What it learns of devices and addresses is kept until the next round, so that a
// node full of pods is looked through once and not once for each pod; its devices are known from an earlier round where
// WatchNode runs, unless they are to be listed anew. The caller closes it.
func (f *Finder) Scan(anew bool) (*Scan, error) {
	devices, err := f.links.get(anew, func() (list []netlink.Link, err error) {
		err = f.host.Ask(func(c *rtnl.Conn) (err error) {
			list, err = rtnl.Dump(c.LinkList)
			return err
		})
		return list, err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	s := &Scan{finder: f, links: devices}
	if f.owners != nil {
		s.owners = f.owners()
	}
	return s, nil
}

func newLink(l netlink.Link) Link {
	a := l.Attrs()
	return Link{
		Device: datapath.Device{Index: a.Index, Name: a.Name},
		Type:   l.Type(),
		MAC:    a.HardwareAddr.String(),
		Peer:   a.ParentIndex,
		PeerN:  a.NetNsID,
	}
}

// Scan is one round of look-ups.
type Scan struct {
	finder *Finder
	owners *cni.View // may be nil

	mu    sync.Mutex
	links map[int]Link // the node's devices, by ifindex
	pairs map[int]int  // how many of them lead to a namespace, by its id; nil: to be counted

	indexing sync.Mutex // held while the namespaces are looked through
	byIP     map[netip.Addr][]*namespace
	open     []*namespace
}

// Close lets go of the namespaces that were looked into.
func (s *Scan) Close() {
	for _, ns := range s.open {
		ns.Close()
	}
	s.open, s.byIP = nil, nil
}

// Same reports whether l is still the device that it was. An ifindex and a name may both have been given to another
// device since.
func (s *Scan) Same(l Link) bool {
	now, ok := s.known(l.Index)
	now.MAC = l.MAC // an address may be changed on a living device; index, kind, name and peer identify it
	return ok && now == l
}

// known is what is known of a device.
func (s *Scan) known(index int) (Link, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.links[index]
	return l, ok
}

// Current reports whether links are still what leads out of their pod: each is the device that it was, and no other
// device of the node leads to the same namespace.
func (s *Scan) Current(links []Link) bool {
	known := map[int]int{}
	for _, l := range links {
		if !s.Same(l) {
			return false
		}
		known[l.PeerN]++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pairs == nil {
		s.pairs = map[int]int{}
		for _, l := range s.links {
			if isPair(l, l.PeerN) {
				s.pairs[l.PeerN]++
			}
		}
	}
	for id, n := range known {
		if s.pairs[id] != n {
			return false
		}
	}
	return len(links) > 0
}

// Whole reports whether a pod has the interfaces that it had when it was found, by one question from the node's side: a
// look from inside takes ten times as long. False where the kernel does not say.
func (s *Scan) Whole(found Found) bool {
	if len(found.Devices) == 0 || len(found.inside) == 0 {
		return false
	}
	var links []netlink.Link
	err := s.finder.host.Ask(func(c *rtnl.Conn) (err error) {
		links, err = rtnl.Dump(func() ([]netlink.Link, error) { return c.LinkListIn(found.Devices[0].PeerN) })
		return err
	})
	return err == nil && slices.Equal(interfacesOf(links), found.inside)
}

// now asks the kernel for one device: no notice tells that the other end of a pair was moved or numbered anew.
func (s *Scan) now(index int) (Link, bool, error) {
	var l netlink.Link
	err := s.finder.host.Ask(func(c *rtnl.Conn) (err error) {
		l, err = c.LinkByIndex(index)
		return err
	})
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("get device %d: %w", index, err)
	}
	link := newLink(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[index], s.pairs = link, nil
	s.finder.links.put(link)
	return link, true, nil
}

// Find returns the host-side devices of a pod. Its errors are *NotFoundError, *NoHostVethError, *AmbiguousError and
// ErrHostNetwork, or tell of a failed system call; Temporary tells which may pass.
func (s *Scan) Find(q Query) (Found, error) {
	if q.Netns == "" {
		found, err := s.findBySandbox(q.Sandboxes, q.Brief)
		if !stale(err) || errors.Is(err, errNoneYet) {
			return found, err
		}
		byIP, ipErr := s.findByIP(q)
		if ipErr != nil && len(q.Sandboxes) > 0 && (len(q.IPs) == 0 || q.Left) {
			return Found{}, err
		}
		return byIP, ipErr
	}
	ns, err := openNamespace(q.Netns)
	if missing(err) {
		return Found{}, &NotFoundError{Netns: q.Netns, Err: err}
	}
	if err != nil {
		return Found{}, fmt.Errorf("network namespace %s: %w", q.Netns, err)
	}
	defer ns.Close()
	return s.peers(ns)
}

func (s *Scan) findByIP(q Query) (Found, error) {
	if len(q.IPs) == 0 || q.Left {
		return Found{}, &NotFoundError{Dir: s.finder.dir, Left: q.Left}
	}
	byIP, err := s.index()
	if err != nil {
		return Found{}, err
	}
	for _, ip := range q.IPs {
		switch found := s.others(byIP[ip], q.UID); len(found) {
		case 0:
			continue
		case 1:
			return s.peers(found[0])
		default:
			return s.oneOf(ip, found)
		}
	}
	return Found{}, &NotFoundError{IPs: q.IPs, Dir: s.finder.dir}
}

// oneOf decides between namespaces that share an address: a dead sandbox may keep the address of its successor, but
// it has lost its veth.
func (s *Scan) oneOf(ip netip.Addr, candidates []*namespace) (Found, error) {
	var result Found
	var paths []string
	for _, ns := range candidates {
		found, err := s.peers(ns)
		if err == nil {
			result = found
			paths = append(paths, ns.path)
		}
	}
	switch len(paths) {
	case 0:
		return s.peers(candidates[0])
	case 1:
		return result, nil
	}
	sort.Strings(paths)
	return Found{}, &AmbiguousError{IP: ip, Paths: paths}
}

// index reads the addresses of every namespace in the folder, each once however many names it has, and once in a scan.
// Namespaces come and go meanwhile: those that cannot be read are left out.
func (s *Scan) index() (map[netip.Addr][]*namespace, error) {
	s.indexing.Lock()
	defer s.indexing.Unlock()
	if s.byIP != nil {
		return s.byIP, nil
	}
	byIP := map[netip.Addr][]*namespace{}
	entries, err := os.ReadDir(s.finder.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read folder of network namespaces: %w", err)
	}
	seen := map[nsID]bool{}
	for _, entry := range entries {
		ns, err := openNamespace(filepath.Join(s.finder.dir, entry.Name()))
		if err != nil {
			continue
		}
		s.open = append(s.open, ns)
		if seen[ns.id] {
			continue
		}
		seen[ns.id] = true
		addrs, err := ns.addresses()
		if err != nil {
			continue
		}
		for _, ip := range addrs {
			byIP[ip] = append(byIP[ip], ns)
		}
	}
	s.byIP = byIP
	return byIP, nil
}

// peers returns the node's ends of a namespace's interfaces.
func (s *Scan) peers(ns *namespace) (Found, error) {
	if ns.id == s.finder.own.id {
		return Found{}, ErrHostNetwork
	}
	h, err := rtnl.Open(ns.handle)
	if err != nil {
		return Found{}, fmt.Errorf("look into %s: %w", ns.path, err)
	}
	defer h.Close()
	links, err := rtnl.Dump(h.LinkList)
	if err != nil {
		return Found{}, fmt.Errorf("list interfaces in %s: %w", ns.path, err)
	}
	// The pod's id for our namespace, and ours for the pod's. -1 (none given) never equals a veth's: an interface
	// with a peer elsewhere makes the kernel give one.
	ours, err := h.GetNetNsIdByFd(int(s.finder.own.handle))
	if err != nil {
		return Found{}, fmt.Errorf("get namespace id in %s: %w", ns.path, err)
	}
	theirs, err := s.idOf(ns)
	if err != nil {
		return Found{}, err
	}
	found := Found{inside: interfacesOf(links)}
	for _, l := range links {
		inside := newLink(l)
		if !sends(inside) {
			continue
		}
		var host Link
		ok := isPair(inside, ours)
		if ok {
			// What is known is enough where it agrees with what the pod's end says now.
			if host, _ = s.known(inside.Peer); !isPair(host, theirs) || host.Peer != inside.Index {
				if host, ok, err = s.now(inside.Peer); err != nil {
					return Found{}, err
				}
			}
		}
		switch {
		case ok && isPair(host, theirs) && host.Peer == inside.Index:
			found.Devices = append(found.Devices, host)
		default:
			found.Unheld = append(found.Unheld, fmt.Sprintf("%s (%s)", inside.Name, describe(inside, ours)))
		}
	}
	if len(found.Devices) == 0 {
		return Found{}, &NoHostVethError{Interfaces: found.Unheld}
	}
	sort.Slice(found.Devices, func(i, j int) bool { return found.Devices[i].Index < found.Devices[j].Index })
	return found, nil
}

// idOf is the node's id of a namespace, -1 where it has none. The kernel answers without its lock of all network
// configuration.
func (s *Scan) idOf(ns *namespace) (id int, err error) {
	err = s.finder.host.Ask(func(c *rtnl.Conn) (err error) {
		id, err = c.GetNetNsIdByFd(int(ns.handle))
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("get namespace id of %s: %w", ns.path, err)
	}
	return id, nil
}

// isPair reports whether l is an end of a pair whose other end is in the namespace with the given id.
func isPair(l Link, other int) bool {
	return (l.Type == "veth" || l.Type == "netkit") && other >= 0 && l.PeerN == other && l.Peer > 0
}

func describe(l Link, ours int) string {
	if l.Type == "veth" && l.PeerN != ours {
		return "veth to another namespace"
	}
	return l.Type
}

// sends leaves out what carries no packet out of a namespace by itself: loopback, and virtual devices that lead
// through another interface of the same namespace (the tunnels' fallback devices stand in every namespace).
func sends(l Link) bool {
	if l.PeerN >= 0 {
		return true // linked to something outside
	}
	switch l.Type {
	case "device":
		return l.Name != "lo"
	case "macvlan", "macvtap", "ipvlan", "ipvtap", "ipoib", "can", "wwan":
		return true
	}
	return false
}
