// SPDX-License-Identifier: Apache-2.0

package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/cni"
)

// results is a folder of CNI results, and what a pod is found by with it.
type results struct {
	*node
	dir string
	age time.Duration
}

func (n *node) results() *results { return &results{node: n, dir: n.t.TempDir()} }

// add writes what libcni would for a pod; each call is a second newer than the one before.
func (r *results) add(uid, netns, host string, addresses ...string) {
	r.t.Helper()
	type object map[string]any
	list := []object{{"name": "cni0"}, {"name": "eth0", "sandbox": filepath.Join(r.node.dir, netns)}}
	if host != "" {
		list = append(list, object{"name": host})
	} else {
		list = list[1:]
	}
	var ipList []object
	for _, a := range addresses {
		ipList = append(ipList, object{"address": a})
	}
	data, err := json.Marshal(object{
		"kind": "cniCacheV1", "containerId": "sandbox-" + uid + "-" + netns, "ifName": "eth0", "netns": filepath.Join(r.node.dir, netns),
		"cniArgs": [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", uid}, {"K8S_POD_UID", uid}},
		"result":  object{"interfaces": list, "ips": ipList},
	})
	r.must(err, "encode result")
	path := filepath.Join(r.dir, "net-"+uid+"-"+netns+"-eth0")
	r.must(os.WriteFile(path, data, 0o600), "write result")
	r.age += time.Second
	at := time.Now().Add(r.age - time.Hour)
	r.must(os.Chtimes(path, at, at), "set time of result")
}

// scan looks for a pod in one round.
func (r *results) scan(uid string, addresses ...string) ([]string, error) {
	r.t.Helper()
	f, err := NewFinder(r.node.dir)
	r.must(err, "new finder")
	defer f.Close()
	cache := cni.New(r.dir, r.node.dir, logr.Discard())
	f.Believe(cache)
	s, err := f.Scan(false)
	r.must(err, "scan")
	defer s.Close()
	found, err := s.Find(Query{UID: uid, Sandboxes: cache.View().Sandboxes(uid), IPs: ips(addresses...)})
	if err == nil && len(addresses) == 0 && !found.Told {
		r.t.Errorf("pod %s: found by results alone, and nobody told", uid)
	}
	var names []string
	for _, d := range found.Devices {
		names = append(names, d.Name)
	}
	return names, err
}

func (r *results) want(uid, devices string, addresses ...string) {
	r.t.Helper()
	if names, err := r.scan(uid, addresses...); err != nil || strings.Join(names, " ") != devices {
		r.t.Errorf("pod %s: %v, %v; want %s", uid, names, err, devices)
	}
}

func (r *results) wantNone(uid, reason string, addresses ...string) {
	r.t.Helper()
	names, err := r.scan(uid, addresses...)
	var notFound *NotFoundError
	if !errors.As(err, &notFound) || !Temporary(err) || !strings.Contains(err.Error(), reason) {
		r.t.Errorf("pod %s: %v, %v; want a temporary *NotFoundError with %q", uid, names, err, reason)
	}
}

// remove ends a pod's namespace as a runtime does.
func (n *node) remove(name string, ns netns.NsHandle) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	n.must(unix.Unmount(path, unix.MNT_DETACH), "unmount namespace")
	n.must(os.Remove(path), "remove mount point")
	n.must(ns.Close(), "close namespace")
}

// deleteLink takes a pod's veth away at once: the kernel does it some time after the namespace's end.
func (n *node) deleteLink(name string) {
	n.t.Helper()
	link, err := netlink.LinkByName(name)
	n.must(err, "find "+name)
	n.must(netlink.LinkDel(link), "delete "+name)
}

func TestFindByCNIResult(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a, b := n.pod("cni-a", nil), n.pod("cni-b", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.2/24")
		n.veth("veth-b", "eth0", b, "fd00:1::3/64")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24")
		r.add("b", "cni-b", "", "fd00:1::3/64")
		r.want("a", "veth-a")
		r.want("b", "veth-b")
		r.want("a", "veth-a", "192.0.2.99") // the result goes before an address that is not there
		r.wantNone("c", "no address yet")
	})
}

// TestFoundFromOutside: the node's side is enough where the CNI result and the kernel name the same; in doubt the pod is looked
// into.
func TestFoundFromOutside(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		find := func(uid string) (Found, error) {
			f, err := NewFinder(n.dir)
			n.must(err, "new finder")
			defer f.Close()
			return n.scan(f, false).Find(Query{UID: uid, Sandboxes: cni.New(r.dir, n.dir, logr.Discard()).View().Sandboxes(uid), Brief: true})
		}
		want := func(uid string, outside bool, devices ...string) {
			t.Helper()
			found, err := find(uid)
			var names []string
			for _, d := range found.Devices {
				names = append(names, d.Name)
			}
			if err != nil || !slices.Equal(names, devices) || found.Outside != outside || !found.Told {
				t.Errorf("%s: %+v, %v; want %v, from outside: %v", uid, found, err, devices, outside)
			}
		}
		for _, name := range []string{"one", "other", "two", "three", "four"} {
			n.veth("veth-"+name, "eth0", n.pod("cni-"+name, nil), "10.1.0.2/24")
		}
		r.add("one", "cni-one", "veth-one", "10.1.0.2/24")
		want("one", true, "veth-one")
		// The result names another device than leads there, or none.
		r.add("other", "cni-other", "veth-of-somebody", "10.1.0.2/24")
		want("other", false, "veth-other")
		r.add("four", "cni-four", "", "10.1.0.2/24")
		want("four", false, "veth-four")
		// One more leads there than the result names.
		r.add("two", "cni-two", "veth-two", "10.1.0.2/24")
		two, err := netns.GetFromPath(filepath.Join(n.dir, "cni-two"))
		n.must(err, "open namespace")
		defer two.Close()
		n.veth("veth-two1", "net1", two, "10.2.0.2/24")
		want("two", false, "veth-two", "veth-two1")
		// The pod has an interface, by a network of its own, that leads elsewhere.
		r.add("three", "cni-three", "veth-three", "10.1.0.2/24")
		data, err := os.ReadFile(filepath.Join(r.dir, "net-three-cni-three-eth0"))
		n.must(err, "read result")
		more := strings.ReplaceAll(strings.ReplaceAll(string(data), "eth0", "net1"), `{"name":"veth-three"}`, `{"name":"net2","sandbox":"/x"}`)
		n.must(os.WriteFile(filepath.Join(r.dir, "net-three-cni-three-net1"), []byte(more), 0o600), "write result")
		want("three", false, "veth-three")
		// Loopback only: the pod's network is being made.
		five := n.pod("cni-five", nil)
		lo := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":"five","ifName":"lo","netns":%q,"cniArgs":[["K8S_POD_NAMESPACE","default"],
["K8S_POD_NAME","five"],["K8S_POD_UID","five"]],"result":{"interfaces":[{"name":"lo","sandbox":%[1]q}],"ips":[{"address":"127.0.0.1/8"}]}}`,
			filepath.Join(n.dir, "cni-five"))
		n.must(os.WriteFile(filepath.Join(r.dir, "cni-loopback-five-lo"), []byte(lo), 0o600), "write result")
		r.add("five", "cni-one", "veth-one", "10.1.0.2/24") // the one before
		if found, err := find("five"); !Temporary(err) || !errors.Is(err, errNoneYet) {
			t.Errorf("five: %+v, %v; want none yet", found, err)
		}
		old := time.Now().Add(-2 * bareFor)
		n.must(os.Chtimes(filepath.Join(r.dir, "cni-loopback-five-lo"), old, old), "set time of result")
		var noVeth *NoHostVethError
		if found, err := find("five"); !errors.As(err, &noVeth) {
			t.Errorf("five, after a while: %+v, %v; want a look into it", found, err)
		}
		n.veth("veth-five", "eth0", five, "10.1.0.6/24")
		want("five", true, "veth-five")
		// A result that outlived its sandbox.
		r.add("gone", "cni-gone", "veth-one", "10.1.0.2/24")
		if found, err := find("gone"); !stale(err) {
			t.Errorf("gone: %+v, %v; want none", found, err)
		}
	})
}

// TestExtraInterfaces: a second network has a result of its own, or none that is seen; the namespace tells.
func TestExtraInterfaces(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a := n.pod("cni-a", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.2/24")
		n.veth("veth-a1", "net1", a, "10.2.0.2/24")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24")
		r.want("a", "veth-a veth-a1")
	})
}

func TestResultThatOutlivedItsSandbox(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		old, alive := n.pod("cni-old", nil), n.pod("cni-new", nil)
		n.veth("veth-new", "eth0", alive, "10.1.0.2/24")
		r.add("a", "cni-new", "veth-new", "10.1.0.2/24")
		r.add("a", "cni-old", "veth-old", "10.1.0.2/24") // the newest, but dead: its sandbox failed after CNI ADD
		n.remove("cni-old", old)
		r.want("a", "veth-new")
		r.add("b", "cni-gone", "veth-b", "10.1.0.7/24")
		r.wantNone("b", "cni-gone")
		// What is left of a namespace is an empty file.
		n.must(os.WriteFile(filepath.Join(n.dir, "cni-gone"), nil, 0o600), "write file")
		r.wantNone("b", "is not a network namespace")
	})
}

// TestNewestSandbox: the runtime made a pod's sandbox anew, and the old one lingers.
func TestNewestSandbox(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a, b := n.pod("cni-1", nil), n.pod("cni-2", nil)
		n.veth("veth-1", "eth0", a, "10.1.0.2/24")
		n.veth("veth-2", "eth0", b, "10.1.0.3/24")
		r.add("a", "cni-1", "veth-1", "10.1.0.2/24")
		r.want("a", "veth-1", "10.1.0.2")
		r.add("a", "cni-2", "veth-2", "10.1.0.3/24")
		r.want("a", "veth-2", "10.1.0.2")
	})
}

// TestReusedAddress: a new pod got the address of one that the API server still shows with it.
func TestReusedAddress(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		b := n.pod("cni-b", nil)
		n.veth("veth-b", "eth0", b, "10.1.0.2/24")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24") // stale
		r.add("b", "cni-b", "veth-b", "10.1.0.2/24")
		r.wantNone("a", "no network namespace", "10.1.0.2")
		r.want("b", "veth-b", "10.1.0.2")
	})
}

// TestReusedNamespaceName: the path of a dead sandbox names another pod's namespace by now.
func TestReusedNamespaceName(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		b := n.pod("cni-x", nil)
		n.veth("veth-b", "eth0", b, "10.1.0.3/24")
		r.add("a", "cni-x", "veth-a", "10.1.0.2/24")
		r.wantNone("a", "is another pod's by now")
		r.want("b", "veth-b", "10.1.0.3") // no result of its own; the stale one is no claim
		r.add("b", "cni-x", "veth-b", "10.1.0.3/24")
		r.want("b", "veth-b")
		r.wantNone("a", "no address yet") // and its result says nothing any more
	})
}

// TestReusedNamespaceNameSameAddress: even then the newer result decides.
func TestReusedNamespaceNameSameAddress(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		b := n.pod("cni-x", nil)
		n.veth("veth-b", "eth0", b, "10.1.0.2/24")
		r.add("a", "cni-x", "veth-a", "10.1.0.2/24")
		r.add("b", "cni-x", "veth-b", "10.1.0.2/24")
		r.wantNone("a", "no network namespace", "10.1.0.2")
		r.want("b", "veth-b")
	})
}

// TestPodThatChangesItsAddress: CAP_NET_ADMIN in a pod is no way out of its limit.
func TestPodThatChangesItsAddress(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a := n.pod("cni-a", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.77/24")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24")
		r.want("a", "veth-a", "10.1.0.2")
	})
}

// TestRenamedAndRecreatedDevice: the node's end has another name than the result says, and then is another device.
func TestRenamedAndRecreatedDevice(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a, b := n.pod("cni-a", nil), n.pod("cni-b", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.2/24")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24")
		link, err := netlink.LinkByName("veth-a")
		n.must(err, "find veth-a")
		n.must(netlink.LinkSetName(link, "renamed"), "rename veth-a")
		r.want("a", "renamed")
		// The old name goes to another pod's device: the name in the result is no proof.
		n.veth("veth-a", "eth0", b, "10.1.0.3/24")
		r.want("a", "renamed")
		n.deleteLink("renamed")
		n.veth("again", "eth0", a, "10.1.0.2/24")
		r.want("a", "again")
	})
}

// TestReusedIfindex: the ifindex of a dead pod's device was given to another pod's.
func TestReusedIfindex(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		a, b := n.pod("cni-a", nil), n.pod("cni-b", nil)
		n.veth("veth-a", "eth0", a, "10.1.0.2/24")
		r.add("a", "cni-a", "veth-a", "10.1.0.2/24")
		link, err := netlink.LinkByName("veth-a")
		n.must(err, "find veth-a")
		n.deleteLink("veth-a")
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = "veth-a", link.Attrs().Index
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(b)}), "add another's veth")
		if names, err := r.scan("a"); err == nil {
			n.t.Errorf("pod a has %v; want none", names)
		}
	})
}

// TestNamespaceOfTheNode: a result that names the node's own namespace would hold the whole node.
func TestNamespaceOfTheNode(t *testing.T) {
	inNode(t, func(n *node) {
		r := n.results()
		path := filepath.Join(n.dir, "cni-host")
		n.must(os.WriteFile(path, nil, 0o600), "make mount point")
		n.must(unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""), "mount namespace")
		defer unix.Unmount(path, unix.MNT_DETACH) //nolint:errcheck // test
		r.add("a", "cni-host", "", "10.1.0.2/24")
		r.wantNone("a", "is the node's own")
	})
}
