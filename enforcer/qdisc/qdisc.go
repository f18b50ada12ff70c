// SPDX-License-Identifier: Apache-2.0

// Package qdisc puts fq where packets leave the node, as pacing needs it there: it finds those devices, records what
// was on them, sets fq with parameters that suit many pods' paced traffic, and restores what was there. A qdisc that
// an administrator chose stays, and is reported.
package qdisc

import (
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
	"github.com/kubepace/kubepace/enforcer/internal/rundir"
)

// Options for New.
type Options struct {
	RunDir string   // where the record of former qdiscs lies; rundir.Default if empty
	Exits  []string // names of the exit devices; found by routes if empty
	// Veths also puts fq on the devices that lead to pods, so that a limited pod's packets to its neighbour on the
	// same node are paced and not policed.
	Veths bool
	Log   logr.Logger
}

// Device is what holds for one device.
type Device struct {
	Index  int    `json:"ifindex"`
	Name   string `json:"name"`
	Qdisc  string `json:"qdisc"`            // what is there, such as "fq" or "mq(4×fq)"
	Paced  bool   `json:"paced"`            // fq with our parameters holds every packet
	Reason string `json:"reason,omitempty"` // why it is not paced
}

// Result is the state of all devices after Sync, or at Inspect.
type Result struct {
	Exits []Device // sorted by ifindex
	Veths []Device // devices that lead to pods; empty unless Options.Veths
	// Fq is nil where the kernel has fq, a *MissingError where it lacks it, or why it cannot tell.
	Fq error
}

// Manager works in the network namespace of the thread that called New. Its methods may be called from any thread,
// by one goroutine at a time.
type Manager struct {
	opts  Options
	conn  *conn
	probe func() error
	fq    error // of the latest probe
	known bool  // fq holds a result
}

// New opens the caller's network namespace.
func New(opts Options) (*Manager, error) {
	if opts.RunDir == "" {
		opts.RunDir = rundir.Default
	}
	c, err := dial(netns.None())
	if err != nil {
		return nil, err
	}
	return &Manager{opts: opts, conn: c, probe: Probe}, nil
}

// Close lets go of the manager's sockets; every qdisc stays.
func (m *Manager) Close() { m.conn.Close() }

// hasFq asks the kernel once where it has fq; it asks again where it lacks it, as a module may be installed later.
func (m *Manager) hasFq() error {
	if !m.known || m.fq != nil {
		m.fq, m.known = m.probe(), true
	}
	return m.fq
}

// device is one device at work.
type device struct {
	name    string
	tree    tree
	buckets uint32
}

// view is the node at one moment.
type view struct {
	node  node
	trees map[int]tree
}

func (m *Manager) look(podVeths []int) (view, error) {
	links, err := rtnl.Dump(m.conn.LinkList)
	if err != nil {
		return view{}, fmt.Errorf("list devices: %w", err)
	}
	routes, err := rtnl.Dump(func() ([]netlink.Route, error) {
		// Table 0 with this filter means every table: policy routing is how multi-homed nodes send.
		return m.conn.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return view{}, fmt.Errorf("list routes: %w", err)
	}
	entries, err := m.conn.qdiscs()
	if err != nil {
		return view{}, err
	}
	v := view{node: node{links: map[int]netlink.Link{}, routes: routes, pods: map[int]bool{}}, trees: map[int]tree{}}
	for _, l := range links {
		index := l.Attrs().Index
		v.node.links[index] = l
		v.trees[index] = newTree(index, entries[index])
	}
	for _, index := range podVeths {
		v.node.pods[index] = true
	}
	return v, nil
}

// exits are the chosen or found exit devices. The error names a chosen one that does not exist.
func (m *Manager) exits(v view) ([]int, error) {
	if len(m.opts.Exits) > 0 {
		return v.node.named(m.opts.Exits)
	}
	return v.node.exits(), nil
}

func (v view) device(index int, buckets uint32) device {
	return device{name: v.node.links[index].Attrs().Name, tree: v.trees[index], buckets: buckets}
}

// Sync brings the devices to the desired state: fq on every exit device and (Options.Veths) on those that lead to
// pods, what was there before on all others. It changes nothing where that holds already. A device that could not be
// set is in the Result with its reason; the error is for what concerns no single device, the Result still holds.
func (m *Manager) Sync(podVeths []int) (Result, error) {
	v, err := m.look(podVeths)
	if err != nil {
		return Result{}, err
	}
	records, err := loadRecords(m.opts.RunDir)
	if err != nil {
		m.opts.Log.Error(err, "record of former qdiscs unreadable; cleanup will restore the kernel's defaults")
		records = map[int]record{}
	}
	exits, nameErr := m.exits(v)
	result := Result{Fq: m.hasFq()}
	wanted := map[int]bool{}
	for _, index := range exits {
		wanted[index] = true
		result.Exits = append(result.Exits, m.set(v.device(index, exitBuckets), records, result.Fq))
	}
	if m.opts.Veths && result.Fq == nil {
		for _, index := range sorted(v.node.pods) {
			if _, ok := v.node.links[index]; ok && !wanted[index] {
				wanted[index] = true
				result.Veths = append(result.Veths, m.set(v.device(index, vethBuckets), records, nil))
			}
		}
	}
	return result, errors.Join(nameErr, m.restoreOthers(v, records, wanted))
}

// set puts fq on one device, recording first what was there.
func (m *Manager) set(d device, records map[int]record, fq error) Device {
	state := Device{Index: d.tree.index, Name: d.name}
	var err error
	foreign, isForeign := d.tree.foreign()
	switch {
	case d.tree.paced(d.buckets):
	case isForeign:
		err = fmt.Errorf("qdisc %s was set by an administrator and stays", foreign)
	case fq != nil:
		err = fq
	default:
		d.tree, err = m.replace(d, records)
	}
	state.Qdisc, state.Paced = d.tree.describe(), err == nil && d.tree.paced(d.buckets)
	if err != nil {
		state.Reason = err.Error()
	}
	return state
}

// replace returns what is there afterwards.
func (m *Manager) replace(d device, records map[int]record) (tree, error) {
	index := d.tree.index
	if !d.tree.ours() {
		records[index] = newRecord(d.name, d.tree)
		if err := saveRecords(m.opts.RunDir, records); err != nil {
			delete(records, index)
			return d.tree, fmt.Errorf("record qdisc of %s: %w", d.name, err)
		}
	}
	if root := d.tree.newRoot(d.buckets); !d.tree.ours() || root.Kind != "mq" {
		if err := m.conn.put(root); err != nil {
			return d.tree, err
		}
	}
	now, err := m.reload(index)
	if err != nil {
		return d.tree, err
	}
	for _, leaf := range now.newLeaves(d.buckets) {
		if err := m.conn.put(leaf); err != nil {
			return now, err
		}
	}
	now, err = m.reload(index)
	if err == nil && !now.paced(d.buckets) {
		err = fmt.Errorf("the kernel shows %s after fq was set", now.describe())
	}
	if err == nil {
		m.opts.Log.Info("fq set where packets leave", "device", d.name, "before", d.tree.describe(), "now", now.describe())
	}
	return now, err
}

func (m *Manager) reload(index int) (tree, error) {
	entries, err := m.conn.qdiscs()
	if err != nil {
		return tree{}, err
	}
	return newTree(index, entries[index]), nil
}

// Inspect reports the exit devices as they are, and changes nothing.
func (m *Manager) Inspect(podVeths []int) (Result, error) {
	v, err := m.look(podVeths)
	if err != nil {
		return Result{}, err
	}
	exits, err := m.exits(v)
	result := Result{Fq: m.hasFq()}
	for _, index := range exits {
		d := v.device(index, exitBuckets)
		state := Device{Index: index, Name: d.name, Qdisc: d.tree.describe(), Paced: d.tree.paced(d.buckets)}
		foreign, isForeign := d.tree.foreign()
		switch {
		case state.Paced:
		case isForeign:
			state.Reason = fmt.Sprintf("qdisc %s was set by an administrator and stays", foreign)
		case result.Fq != nil:
			state.Reason = result.Fq.Error()
		default:
			state.Reason = "fq is not set yet"
		}
		result.Exits = append(result.Exits, state)
	}
	return result, err
}
