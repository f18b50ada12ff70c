// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

// Scanner looks at the network namespace of the thread that called New, and at a bpffs. Its method may be called from
// any thread of that namespace.
type Scanner struct {
	bpffs string
	own   netns.NsHandle
	host  *rtnl.Shared // of own
}

// New opens the caller's network namespace. bpffs is where Cilium pins its maps, DefaultBPFFS if empty.
func New(bpffs string) (*Scanner, error) {
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	own, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	host, err := rtnl.Share(own)
	if err != nil {
		_ = own.Close()
		return nil, err
	}
	return &Scanner{bpffs: bpffs, own: own, host: host}, nil
}

// Close lets go of the scanner's socket and namespace.
func (s *Scanner) Close() {
	s.host.Close()
	_ = s.own.Close()
}

// Unseen reports whether Cilium's bandwidth manager is switched on: what it is in charge of stands in its maps.
func (s *Scanner) Unseen() bool {
	_, err := os.Lstat(filepath.Join(s.bpffs, ciliumFolder, ciliumThrottle))
	return !errors.Is(err, fs.ErrNotExist)
}

// Look tells which of the devices another limiter is in charge of, by ifindex. exits are the devices by which packets
// leave the node.
func (s *Scanner) Look(devices, exits []int) (found map[int]Rival, err error) {
	err = s.host.Ask(func(conn *rtnl.Conn) (err error) {
		found, err = s.look(conn, devices, exits)
		return err
	})
	return found, err
}

func (s *Scanner) look(conn *rtnl.Conn, devices, exits []int) (map[int]Rival, error) {
	n := node{conn: conn, many: len(devices) > many}
	if n.many {
		if err := n.listQdiscs(); err != nil {
			return nil, err
		}
	}
	bwm := openCilium(s.bpffs)
	defer bwm.Close()
	atExit := false
	for i := 0; bwm.on() && i < len(exits) && !atExit; i++ {
		atExit = hasCiliumExit(conn, exits[i])
	}
	found := map[int]Rival{}
	var errs []error
	for _, index := range devices {
		filters, err := n.filters(index)
		errs = append(errs, err)
		if len(filters) == 0 && !bwm.on() {
			continue
		}
		l, err := n.link(index)
		errs = append(errs, err)
		if l == nil {
			continue
		}
		f := Facts{Device: l.Attrs().Name}
		errs = append(errs, n.add(&f, filters))
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

// Of a few devices the kernel is asked one by one, of many it lists all: its list of the qdiscs of a node full of pods takes
// as long as a few questions, but its lock of all network configuration dozens of times, for which others may queue.
const many = 64

// node is the node's devices and their qdiscs, where they were listed.
type node struct {
	conn  *rtnl.Conn
	many  bool                 // devices are listed when the first is asked for: on most nodes none is
	links map[int]netlink.Link // nil: not listed
	roots map[int]string       // kind of the root qdisc; nil: qdiscs were not listed
	hooks map[int]bool         // has an ingress or clsact qdisc
}

func (n *node) listLinks() error {
	list, err := rtnl.Dump(n.conn.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	n.links = make(map[int]netlink.Link, len(list))
	for _, l := range list {
		n.links[l.Attrs().Index] = l
	}
	return nil
}

func (n *node) listQdiscs() error {
	list, err := rtnl.Dump(func() ([]netlink.Qdisc, error) { return n.conn.QdiscList(nil) })
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	n.roots, n.hooks = map[int]string{}, map[int]bool{}
	for _, q := range list {
		switch a := q.Attrs(); a.Parent {
		case netlink.HANDLE_ROOT:
			n.roots[a.LinkIndex] = q.Type()
		case netlink.HANDLE_INGRESS: // clsact's is the same number
			n.hooks[a.LinkIndex] = true
		}
	}
	return nil
}

// link is nil where the device is gone.
func (n *node) link(index int) (netlink.Link, error) {
	if n.many && n.links == nil {
		if err := n.listLinks(); err != nil {
			return nil, err
		}
	}
	if n.links != nil || index <= 0 { // 0: what a redirect to a device that is gone has
		return n.links[index], nil
	}
	l, err := n.conn.LinkByIndex(index)
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return nil, nil //nolint:nilnil // gone
	}
	if err != nil {
		return nil, fmt.Errorf("get device %d: %w", index, err)
	}
	return l, nil
}

// filters are those at a device's ingress; none where it has no hook for them, or is gone.
func (n *node) filters(index int) ([]netlink.Filter, error) {
	if n.roots != nil && !n.hooks[index] {
		return nil, nil
	}
	list, err := rtnl.Dump(func() ([]netlink.Filter, error) {
		return n.conn.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.HANDLE_MIN_INGRESS)
	})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of device %d: %w", index, err)
	}
	return list, nil
}

// add looks at the filters of one device.
func (n *node) add(f *Facts, filters []netlink.Filter) error {
	var err error
	var errs []error
	for _, filter := range filters {
		if b, ok := filter.(*netlink.BpfFilter); ok && b.Name != "" {
			f.Programs = append(f.Programs, b.Name)
		}
		for _, action := range actions(filter) {
			switch a := action.(type) {
			case *netlink.MirredAction:
				if a.MirredAction == netlink.TCA_EGRESS_REDIR && f.Redirect == nil {
					f.Redirect, err = n.redirect(a.Ifindex)
					errs = append(errs, err)
				}
			case *netlink.PoliceAction:
				f.Policer = "police of filter " + filter.Type()
			}
		}
	}
	return errors.Join(errs...)
}

// redirect is what packets meet on a device that they are sent to; nil where it is gone.
func (n *node) redirect(index int) (*Redirect, error) {
	target, err := n.link(index)
	if target == nil {
		return nil, err
	}
	if n.roots == nil { // the kernel does not answer for the root qdisc of one device
		err = n.listQdiscs()
	}
	return &Redirect{Device: target.Attrs().Name, Type: target.Type(), Qdisc: n.roots[index]}, err
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
