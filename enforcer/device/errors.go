// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrHostNetwork means that the pod uses the node's own network namespace: there is no device of its own to hold.
var ErrHostNetwork = errors.New("the pod shares the node's network namespace")

// NotFoundError means that no network namespace of the pod is known (yet). Looking again later may help.
type NotFoundError struct {
	Netns string       // the path that was asked for; empty where addresses were
	IPs   []netip.Addr // the addresses that were asked for
	Dir   string       // where they were looked for
	Err   error        // of opening Netns; may be nil
	Left  bool         // it was there
}

func (e *NotFoundError) Error() string {
	switch {
	case e.Netns != "" && e.Err != nil:
		return fmt.Sprintf("network namespace %s: %v", e.Netns, e.Err)
	case len(e.IPs) == 0 && e.Left:
		return "the pod's network was taken down, and the container runtime has told of no other"
	case len(e.IPs) == 0:
		return "the pod has no address yet"
	}
	texts := make([]string, len(e.IPs))
	for i, ip := range e.IPs {
		texts[i] = ip.String()
	}
	return fmt.Sprintf("no network namespace under %s has the address %s", e.Dir, strings.Join(texts, " or "))
}

func (e *NotFoundError) Unwrap() error { return e.Err }

// NoHostVethError means that the pod has a network namespace of its own, and nothing in it that ends in a device of
// the node: its packets cannot be held.
type NoHostVethError struct {
	Interfaces []string // what the pod has instead, such as "eth0 (macvlan)"; empty where it has none (yet)
}

func (e *NoHostVethError) Error() string {
	if len(e.Interfaces) == 0 {
		return "the pod's network namespace has no interface yet"
	}
	return "no host veth: the pod has " + strings.Join(e.Interfaces, ", ")
}

// AmbiguousError means that several network namespaces have the pod's address. Limiting the wrong one would hold a
// stranger and free the pod, so none is taken.
type AmbiguousError struct {
	IP    netip.Addr
	Paths []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("address %s is in several network namespaces: %s", e.IP, strings.Join(e.Paths, ", "))
}

// Temporary reports whether looking again later may find what err says is missing.
func Temporary(err error) bool {
	var notFound *NotFoundError
	var noVeth *NoHostVethError
	var ambiguous *AmbiguousError
	switch {
	case err == nil, errors.Is(err, ErrHostNetwork):
		return false
	case errors.As(err, &noVeth):
		return len(noVeth.Interfaces) == 0
	case errors.As(err, &notFound), errors.As(err, &ambiguous):
		return true
	}
	return true // an I/O or netlink error
}
