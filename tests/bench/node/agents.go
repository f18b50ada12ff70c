// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/condition"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/node"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// agents are as many nodes' agents in this process: the loop, the source of pods and all that writes are the real
// ones, each with a connection of its own; the kernel is memory.
type agents struct {
	up, down atomic.Int64 // bytes to the API server, and from it, TLS included
	stop     context.CancelFunc
	group    *errgroup.Group
	loops    []*enforcer.Enforcer
}

func startAgents(ctx context.Context, config *rest.Config, n int) (*agents, error) {
	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	a := &agents{stop: stop, group: group}
	for i := range n {
		if err := a.startOne(ctx, config, clusterNode(i)); err != nil {
			return a, err
		}
	}
	return a, nil
}

func clusterNode(i int) string { return fmt.Sprintf("node-%04d", i) }

func (a *agents) startOne(ctx context.Context, config *rest.Config, name string) error {
	config = rest.CopyConfig(config)
	config.Dial = a.dial // its own also makes the connection this agent's alone
	config.QPS, config.Burst = 50, 100
	source, err := pods.NewAPIServer(config, name, logr.Discard())
	if err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	conditions := condition.New(condition.ByAPI(clients.CoreV1()), source, logr.Discard())
	k := &memory{states: map[string]datapath.State{}}
	loop, err := enforcer.New(enforcer.Options{
		Source: source, Datapath: k, Qdiscs: k, Scan: func(bool) (enforcer.Scan, error) { return k, nil }, Observer: conditions, Log: logr.Discard(),
	})
	if err != nil {
		return err
	}
	policy, err := node.ParsePolicy("unbounded", 1)
	if err != nil {
		return err
	}
	advertiser, err := node.New(node.Options{
		Config: config, Node: name, Namespace: "kubepace-system", Policy: policy, Agent: loop, Source: source, Log: logr.Discard(),
	})
	if err != nil {
		return err
	}
	a.loops = append(a.loops, loop)
	for _, run := range []func(context.Context) error{source.Run, conditions.Run, loop.Run, advertiser.Run} {
		a.group.Go(func() error { return run(ctx) })
	}
	return nil
}

// dial counts what the connection carries.
func (a *agents) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &countedConn{Conn: conn, up: &a.up, down: &a.down}, nil
}

type countedConn struct {
	net.Conn
	up, down *atomic.Int64
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.down.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.up.Add(int64(n))
	return n, err
}

// close ends all agents.
func (a *agents) close() error {
	a.stop()
	if err := a.group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("agents: %w", err)
	}
	return nil
}

// enforced counts the pods that all agents hold, and the agents that know of all their pods.
func (a *agents) enforced() (held, synced int) {
	for _, loop := range a.loops {
		s := loop.Status()
		if s.Synced {
			synced++
		}
		for _, v := range s.Pods {
			if v.Enforced {
				held++
			}
		}
	}
	return held, synced
}

// memory stands in for a node's kernel: whatever is asked for is so.
type memory struct {
	mu     sync.Mutex
	states map[string]datapath.State
}

// Set implements enforcer.Datapath.
func (m *memory) Set(l datapath.Limit) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range l.Devices {
		l.Devices[i].Hook = datapath.HookTCX
	}
	m.states[l.Pod.UID] = datapath.State{Limit: l, Horizon: time.Second}
	return nil
}

// Remove implements enforcer.Datapath.
func (m *memory) Remove(uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.states, uid)
	return nil
}

// States implements enforcer.Datapath.
func (m *memory) States() ([]datapath.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]datapath.State, 0, len(m.states))
	for _, s := range m.states {
		list = append(list, s)
	}
	return list, nil
}

// Known implements enforcer.Datapath.
func (m *memory) Known() ([]datapath.State, error) { return m.States() }

// Features implements enforcer.Datapath.
func (m *memory) Features() datapath.Features {
	return datapath.Features{Kernel: "none", TCX: true, Stamp: true}
}

// Disturbed implements enforcer.Datapath.
func (m *memory) Disturbed() bool { return false }

// Repairs implements enforcer.Datapath.
func (m *memory) Repairs() []datapath.Repair { return nil }

// Early implements enforcer.Datapath.
func (m *memory) Early(int) (attach func()) { return nil }

// Expect implements enforcer.Datapath.
func (m *memory) Expect(int) error { return nil }

// Sync implements enforcer.Qdiscs.
func (m *memory) Sync([]int) (qdisc.Result, error) {
	return qdisc.Result{Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "fq", Paced: true}}}, nil
}

// Find implements enforcer.Scan: a device whose number is in the pod's address.
func (m *memory) Find(q device.Query) (device.Found, error) {
	if len(q.IPs) == 0 {
		return device.Found{}, &device.NotFoundError{}
	}
	return device.Found{Devices: []device.Link{deviceOf(q.IPs[0])}}, nil
}

func deviceOf(ip netip.Addr) device.Link {
	b := ip.As4()
	index := int(b[1])<<16 + int(b[2])<<8 + int(b[3])
	return device.Link{Device: datapath.Device{Index: index, Name: fmt.Sprintf("veth%08x", index)}, Type: "veth"}
}

// Current implements enforcer.Scan.
func (m *memory) Current(links []device.Link) bool { return len(links) > 0 }

// Whole implements enforcer.Scan.
func (m *memory) Whole(device.Found) bool { return true }

// Close implements enforcer.Scan.
func (m *memory) Close() {}
