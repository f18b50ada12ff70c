// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/tests/bench/peer"
	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab"
)

const podUID = "bench-pod"

// lab is one topology on which every variant is tried in turn.
type lab struct {
	*netlab.Topology
	path   result.Path
	dir    string
	dp     *datapath.Datapath
	fq     *qdisc.Manager
	peers  *peer.Programs
	plugin peer.Plugin
	pod    *netlab.Pod
	uplink int // ifindex
}

// limiter is a variant in force.
type limiter struct {
	drops  func() (uint64, error) // packets
	remove func() error
	bucket *result.Bucket // of the CNI plugin
}

func newLab(path result.Path, plugin string) (l *lab, err error) {
	l = &lab{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.dir, err = os.MkdirTemp("", "kubepace-bench"); err != nil {
		return l, fmt.Errorf("make a folder: %w", err)
	}
	l.Topology, err = netlab.Build(netlab.Options{VXLAN: path == result.VXLAN, NetnsDir: filepath.Join(l.dir, "netns"), Pods: 2})
	if err != nil {
		return l, err
	}
	l.pod = l.Pods[0]
	l.plugin = peer.Plugin{Path: plugin, NetnsPath: l.pod.NetnsPath, HostDevice: l.pod.HostDevice}
	// Or the kernel would begin each transfer with what it remembers of the variant before.
	for _, n := range []*netlab.Namespace{l.pod.Namespace, l.Host} {
		if err := n.Sysctl("net.ipv4.tcp_no_metrics_save", "1"); err != nil {
			return l, err
		}
	}
	link, err := l.Node.Link(netlab.Uplink)
	if err != nil {
		return l, err
	}
	l.uplink = link.Attrs().Index
	return l, l.Node.Do(l.open)
}

// bpffs is where the datapath pins.
func (l *lab) bpffs() string { return filepath.Join(l.dir, "bpf", "kubepace") }

// open loads everything on the node; nothing is attached yet.
func (l *lab) open() (err error) {
	mount := filepath.Dir(l.bpffs())
	if err := os.Mkdir(mount, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", mount, err)
	}
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf filesystem at %s: %w", mount, err)
	}
	if l.dp, err = datapath.Open(datapath.Options{BPFFS: l.bpffs(), Log: logr.Discard()}); err != nil {
		return fmt.Errorf("open the datapath: %w", err)
	}
	if !l.dp.Features().Stamp {
		return fmt.Errorf("kernel %s cannot pace (Linux 5.18): there is nothing to compare", l.dp.Features().Kernel)
	}
	l.fq, err = qdisc.New(qdisc.Options{RunDir: filepath.Join(l.dir, "run"), Exits: []string{netlab.Uplink}, Log: logr.Discard()})
	if err != nil {
		return fmt.Errorf("open the qdisc manager: %w", err)
	}
	l.peers, err = peer.Load(l.uplink, l.Remote)
	return err
}

func (l *lab) close() error {
	var errs []error
	if l.peers != nil {
		errs = append(errs, l.peers.Close())
	}
	if l.fq != nil {
		l.fq.Close()
	}
	if l.dp != nil {
		errs = append(errs, l.dp.Close(), l.Node.Do(func() error { return datapath.Cleanup(l.bpffs()) }))
		errs = append(errs, unix.Unmount(filepath.Dir(l.bpffs()), unix.MNT_DETACH))
	}
	if l.Topology != nil {
		errs = append(errs, l.Topology.Close())
	}
	errs = append(errs, os.RemoveAll(l.dir))
	return errors.Join(errs...)
}

// apply puts a variant in force, at a rate in bits/s.
func (l *lab) apply(v result.Variant, bps int64) (lim limiter, err error) {
	err = l.Node.Do(func() error {
		switch v {
		case result.Kubepace:
			lim, err = l.applyKubepace(bps)
		case result.FIFO:
			lim, err = l.applyFIFO(bps)
		case result.TBFContainerd:
			lim, err = l.applyPlugin(v, bps, peer.BurstContainerd)
		case result.TBFSmall:
			lim, err = l.applyPlugin(v, bps, peer.BurstSmall(uint64(bps)))
		default:
			lim = limiter{drops: l.uplinkDrops, remove: func() error { return nil }}
		}
		if err != nil || l.path != result.RedirectNeigh {
			return err
		}
		return l.peers.AttachRedirect(l.pod.HostIndex)
	})
	if err != nil {
		return lim, fmt.Errorf("apply %s: %w", v, err)
	}
	return lim, nil
}

// withdraw ends a variant, and whatever packets it holds.
func (l *lab) withdraw(v result.Variant, lim limiter) error {
	err := l.Node.Do(func() error {
		return errors.Join(
			l.peers.Detach(l.pod.HostIndex), lim.remove(),
			peer.RemoveHooks(l.pod.HostIndex), peer.RemoveHooks(l.uplink))
	})
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", v, err)
	}
	return nil
}

func (l *lab) uplinkDrops() (uint64, error) { return peer.Drops(l.uplink) }

// setFQ puts fq on the uplink, with the agent's own parameters.
func (l *lab) setFQ() error {
	state, err := l.fq.Sync([]int{l.pod.HostIndex})
	if err != nil {
		return fmt.Errorf("set fq: %w", err)
	}
	if len(state.Exits) != 1 || !state.Exits[0].Paced {
		return fmt.Errorf("set fq: the uplink is not paced: %+v", state)
	}
	return nil
}

func (l *lab) applyKubepace(bps int64) (limiter, error) {
	if err := l.setFQ(); err != nil {
		return limiter{}, err
	}
	limit := datapath.Limit{
		Pod:     datapath.Pod{Namespace: "bench", Name: l.pod.Name, UID: podUID},
		Devices: []datapath.Device{{Index: l.pod.HostIndex}}, Rate: bandwidth.Rate(bps), Mode: datapath.ModePacing,
	}
	return limiter{
		drops: func() (uint64, error) {
			fq, err := l.uplinkDrops()
			if err != nil {
				return 0, err
			}
			states, err := datapath.Read(l.bpffs())
			if err != nil || len(states) != 1 {
				return 0, fmt.Errorf("read counters of %d pods, want 1: %w", len(states), err)
			}
			return fq + states[0].Counters.Dropped, nil
		},
		remove: func() error { return errors.Join(l.dp.Remove(podUID), l.fq.Restore()) },
	}, l.dp.Set(limit)
}

func (l *lab) applyFIFO(bps int64) (limiter, error) {
	if err := l.setFQ(); err != nil {
		return limiter{}, err
	}
	return limiter{
		drops: func() (uint64, error) {
			fq, err := l.uplinkDrops()
			if err != nil {
				return 0, err
			}
			fifo, err := l.peers.FIFODrops(l.pod.HostIndex)
			return fq + fifo, err
		},
		remove: l.fq.Restore,
	}, l.peers.AttachFIFO(l.pod.HostIndex, l.uplink, uint64(bps))
}

func (l *lab) applyPlugin(v result.Variant, bps int64, burst uint64) (limiter, error) {
	ifb, err := l.plugin.Add(uint64(bps), burst)
	if err != nil {
		return limiter{}, err
	}
	shown, err := peer.Shown(ifb.Attrs().Name)
	return limiter{
		drops: func() (uint64, error) {
			uplink, err := l.uplinkDrops()
			if err != nil {
				return 0, err
			}
			bucket, err := peer.Drops(ifb.Attrs().Index)
			return uplink + bucket, err
		},
		remove: l.plugin.Del,
		bucket: &result.Bucket{Variant: v, LimitBps: bps, BurstBits: burst, Shown: shown},
	}, err
}
