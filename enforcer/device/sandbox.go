// SPDX-License-Identifier: Apache-2.0

package device

import (
	"cmp"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/kubepace/kubepace/enforcer/cni"
)

// Reasons why a namespace is not the one that a CNI result is about, though it has its name.
var (
	errAnother = errors.New("has none of the addresses and devices of the CNI result: it is another pod's by now, or was taken down")
	errOwn     = errors.New("is the node's own")
	errNoneYet = errors.New("no device of the node leads there yet")
)

// findBySandbox returns the devices of the newest sandbox that is still there. Its error is stale where none is.
func (s *Scan) findBySandbox(sandboxes []cni.Sandbox, brief bool) (Found, error) {
	var first error = &NotFoundError{Dir: s.finder.dir}
	for i, sandbox := range sandboxes {
		found, err := s.inSandbox(sandbox, brief)
		if !stale(err) || errors.Is(err, errNoneYet) { // an older one is not to be taken for one that is being made
			found.Told = err == nil
			return found, err
		}
		if i == 0 {
			first = err
		}
	}
	return Found{}, first
}

// inSandbox looks into the namespace that a sandbox names.
func (s *Scan) inSandbox(sandbox cni.Sandbox, brief bool) (Found, error) {
	path := filepath.Join(s.finder.dir, sandbox.Netns)
	ns, err := openNamespace(path)
	if err != nil {
		return Found{}, &NotFoundError{Netns: path, Err: err}
	}
	defer ns.Close()
	if ns.id == s.finder.own.id {
		return Found{}, &NotFoundError{Netns: path, Err: errOwn}
	}
	if brief {
		found, ok := s.outside(ns, sandbox)
		if ok {
			return found, nil
		}
		if bare(sandbox) && time.Since(sandbox.Written) < bareFor {
			return Found{}, &NotFoundError{Netns: path, Err: errNoneYet}
		}
	}
	found, err := s.peers(ns)
	is, checkErr := s.belongs(ns, sandbox, found.Devices)
	switch {
	case checkErr != nil:
		return Found{}, checkErr
	case !is:
		return Found{}, &NotFoundError{Netns: path, Err: errAnother}
	}
	return found, err
}

// bareFor is how long a network may take to be made; after that the namespace is looked into.
const bareFor = time.Minute

// bare is a sandbox of which only loopback was told: containerd calls the plugins of loopback and of the pod's own network at
// the same time, and the latter are still at work.
func bare(sandbox cni.Sandbox) bool {
	return len(sandbox.IPs) == 0 && len(sandbox.HostDevices) == 0 && len(sandbox.Inside) == 0
}

// outside is what the node's side shows of a sandbox's namespace, without a look into it, which waits for the kernel's
// lock of all network configuration. It is enough where the CNI result names each device that leads there, and no more
// interfaces inside than those are the ends of; and where there is no result yet.
func (s *Scan) outside(ns *namespace, sandbox cni.Sandbox) (Found, bool) {
	id, err := s.idOf(ns)
	if err != nil {
		return Found{}, false
	}
	found := Found{Outside: true, Devices: s.leadingTo(id)}
	if len(found.Devices) == 0 || bare(sandbox) {
		return found, len(found.Devices) > 0
	}
	unnamed := func(l Link) bool { return !slices.Contains(sandbox.HostDevices, l.Name) }
	return found, len(sandbox.Inside) <= len(found.Devices) && !slices.ContainsFunc(found.Devices, unnamed)
}

// leadingTo returns the known devices of the node whose other end is in the namespace with the given id, sorted by ifindex.
func (s *Scan) leadingTo(id int) (list []Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		if isPair(l, id) {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return list
}

// belongs reports whether a namespace is still the sandbox's: the kernel shows an address of the CNI result in it, or
// the other end of a device that the result names. One of them is enough: a pod with CAP_NET_ADMIN may change its own
// addresses, and must not get rid of its limit by that. Where the result says neither, the name has to do.
func (s *Scan) belongs(ns *namespace, sandbox cni.Sandbox, devices []Link) (bool, error) {
	if len(sandbox.IPs) == 0 && len(sandbox.HostDevices) == 0 {
		return true, nil
	}
	if slices.ContainsFunc(devices, func(l Link) bool { return slices.Contains(sandbox.HostDevices, l.Name) }) {
		return true, nil
	}
	addrs, err := ns.addresses()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(addrs, func(ip netip.Addr) bool { return slices.Contains(sandbox.IPs, ip) }), nil
}

// stale tells a sandbox that is gone from one that was found, whatever was found in it.
func stale(err error) bool {
	var notFound *NotFoundError
	return errors.As(err, &notFound)
}

// others leaves out the namespaces that are another pod's: an address may have been given to a new pod while its former
// owner is still around.
func (s *Scan) others(candidates []*namespace, uid string) []*namespace {
	if s.owners == nil || uid == "" || len(candidates) == 0 {
		return candidates
	}
	return slices.DeleteFunc(slices.Clone(candidates), func(ns *namespace) bool { return s.isAnothers(ns, uid) })
}

func (s *Scan) isAnothers(ns *namespace, uid string) bool {
	name := filepath.Base(ns.path)
	owner := s.owners.Owner(name)
	if owner == "" || owner == uid {
		return false
	}
	// A file that outlived its sandbox is no claim.
	found, _ := s.peers(ns) // without devices the addresses tell
	for _, sandbox := range s.owners.Sandboxes(owner) {
		if is, err := s.belongs(ns, sandbox, found.Devices); sandbox.Netns == name && err == nil && is {
			return true
		}
	}
	return false
}

// IsNamespace reports whether a file in the finder's folder is a network namespace at this moment.
func (f *Finder) IsNamespace(name string) bool {
	ns, err := openNamespace(filepath.Join(f.dir, name))
	if err != nil {
		return false
	}
	ns.Close()
	return true
}
