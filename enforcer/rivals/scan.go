// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// Scanner looks at the network namespace of the thread that called New, and at a bpffs. Its method may be called from
// any thread of that namespace, by one goroutine at a time.
type Scanner struct {
	handle *netlink.Handle
	bpffs  string
}

// New opens the caller's network namespace. bpffs is where Cilium pins its maps, DefaultBPFFS if empty.
func New(bpffs string) (*Scanner, error) {
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	h, err := rtnl.Open(netns.None())
	if err != nil {
		return nil, err
	}
	return &Scanner{handle: h, bpffs: bpffs}, nil
}

// Close lets go of the scanner's socket.
func (s *Scanner) Close() { s.handle.Close() }

// Look tells which of the devices another limiter is in charge of, by ifindex. exits are the devices by which packets
// leave the node.
func (s *Scanner) Look(devices, exits []int) (map[int]Rival, error) {
	n, err := s.node()
	if err != nil {
		return nil, err
	}
	bwm := openCilium(s.bpffs)
	defer bwm.Close()
	atExit := false
	for i := 0; bwm.on() && i < len(exits) && !atExit; i++ {
		atExit = s.hasCiliumExit(exits[i])
	}
	found := map[int]Rival{}
	var errs []error
	for _, index := range devices {
		l, ok := n.links[index]
		if !ok || (!n.hook[index] && !bwm.on()) {
			continue
		}
		f := Facts{Device: l.Attrs().Name}
		if n.hook[index] {
			errs = append(errs, s.addFilters(&f, n, index))
		}
		if bwm.on() {
			f.Programs = append(f.Programs, programs(index, ebpf.AttachTCXIngress)...)
			f.Cilium = bwm.facts(index, atExit)
		}
		if r, ok := Judge(f); ok {
			found[index] = r
		}
	}
	return found, errors.Join(errs...)
}

// node is what one dump each of devices and qdiscs shows.
type node struct {
	links map[int]netlink.Link
	root  map[int]string // kind of the root qdisc
	hook  map[int]bool   // has an ingress or clsact qdisc
}

func (s *Scanner) node() (node, error) {
	n := node{links: map[int]netlink.Link{}, root: map[int]string{}, hook: map[int]bool{}}
	links, err := rtnl.Dump(s.handle.LinkList)
	if err != nil {
		return n, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		n.links[l.Attrs().Index] = l
	}
	qdiscs, err := rtnl.Dump(func() ([]netlink.Qdisc, error) { return s.handle.QdiscList(nil) })
	if err != nil {
		return n, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		switch a := q.Attrs(); a.Parent {
		case netlink.HANDLE_ROOT:
			n.root[a.LinkIndex] = q.Type()
		case netlink.HANDLE_INGRESS: // clsact's is the same number
			n.hook[a.LinkIndex] = true
		}
	}
	return n, nil
}

// addFilters reads the filters at a device's ingress.
func (s *Scanner) addFilters(f *Facts, n node, index int) error {
	list, err := rtnl.Dump(func() ([]netlink.Filter, error) {
		return s.handle.FilterList(n.links[index], netlink.HANDLE_MIN_INGRESS)
	})
	if err != nil {
		return fmt.Errorf("list filters of %s: %w", f.Device, err)
	}
	for _, filter := range list {
		if b, ok := filter.(*netlink.BpfFilter); ok && b.Name != "" {
			f.Programs = append(f.Programs, b.Name)
		}
		for _, action := range actions(filter) {
			switch a := action.(type) {
			case *netlink.MirredAction:
				if target, ok := n.links[a.Ifindex]; ok && a.MirredAction == netlink.TCA_EGRESS_REDIR && f.Redirect == nil {
					f.Redirect = &Redirect{Device: target.Attrs().Name, Type: target.Type(), Qdisc: n.root[a.Ifindex]}
				}
			case *netlink.PoliceAction:
				f.Policer = "police of filter " + filter.Type()
			}
		}
	}
	return nil
}

func actions(filter netlink.Filter) []netlink.Action {
	switch f := filter.(type) {
	case *netlink.U32:
		if f.Police != nil {
			return append([]netlink.Action{f.Police}, f.Actions...)
		}
		return f.Actions
	case *netlink.MatchAll:
		return f.Actions
	case *netlink.Flower:
		return f.Actions
	}
	return nil
}

// programs are the names of the programs that a device has by tcx; none on kernels without.
func programs(index int, hook ebpf.AttachType) []string {
	result, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: hook})
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range result.Programs {
		prog, err := ebpf.NewProgramFromID(p.ID)
		if err != nil {
			continue
		}
		if info, err := prog.Info(); err == nil {
			names = append(names, info.Name)
		}
		prog.Close()
	}
	return names
}
