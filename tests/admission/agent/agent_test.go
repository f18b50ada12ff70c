// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/condition"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/node"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/rivals"
)

// kernel plays the node: what a test says of its pods, by their addresses, and whether limits can be set.
type kernel struct {
	mu     sync.Mutex
	states map[string]datapath.State
	found  map[string]answer
	broken error // of every look at the kernel
	setErr error
	moved  bool // devices are to be looked for again
}

type answer struct {
	found device.Found
	err   error
}

func (k *kernel) Set(l datapath.Limit) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.setErr != nil {
		return k.setErr
	}
	l.Devices = slices.Clone(l.Devices)
	for i := range l.Devices {
		l.Devices[i].Hook = datapath.HookTCX
	}
	k.states[l.Pod.UID] = datapath.State{Limit: l}
	return nil
}

func (k *kernel) Remove(uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.states, uid)
	return nil
}

func (k *kernel) States() ([]datapath.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.states)), k.broken
}

func (k *kernel) Known() ([]datapath.State, error) { return k.States() }

func (k *kernel) Disturbed() bool { return false }

func (k *kernel) Repairs() []datapath.Repair { return nil }

// Look implements enforcer.Rivals: device 12 has another limiter.
func (k *kernel) Look(devices, _ []int) (map[int]rivals.Rival, error) {
	if !slices.Contains(devices, 12) {
		return nil, nil
	}
	return map[int]rivals.Rival{12: {Who: "the CNI bandwidth plugin", How: "tbf on veth12", Device: "veth12"}}, nil
}

func (k *kernel) Unseen() bool { return false }

func (k *kernel) Early(int) (attach func()) { return nil }

func (k *kernel) Expect(int) error { return nil }

func (k *kernel) Features() datapath.Features { return datapath.Features{Kernel: "6.1", Stamp: true} }

func (k *kernel) Sync([]int) (qdisc.Result, error) {
	return qdisc.Result{Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "fq", Paced: true}}}, nil
}

func (k *kernel) Find(q device.Query) (device.Found, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ip := range q.IPs {
		if a, ok := k.found[ip.String()]; ok {
			return a.found, a.err
		}
	}
	return device.Found{}, &device.NotFoundError{IPs: q.IPs, Dir: "/run/netns"}
}

func (k *kernel) Whole(device.Found) bool { return true }

func (k *kernel) Current(links []device.Link) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(links) > 0 && !k.moved
}

func (k *kernel) Close() {}

func (k *kernel) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken = err
}

// move makes every device another one.
func (k *kernel) move() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.moved = true
}

// at lets a search for an address find this.
func (k *kernel) at(ip string, a answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found[ip] = a
}

func veth(index int, name string) device.Found {
	return device.Found{Devices: []device.Link{{Device: datapath.Device{Index: index, Name: name}, Type: "veth"}}}
}

// agent is a running one.
type agent struct {
	*kernel
	*enforcer.Enforcer
	wire *wire
	stop func()
}

const (
	// briefly is a Lease that runs out while a test waits: sooner than an agent withdraws by itself.
	briefly = 6 * time.Second
	lasting = node.DefaultLease
)

// startAgent runs the loop and the writers as the program wires them, until the test ends or stop is called.
func startAgent(t *testing.T, config *rest.Config, name, advertise string, lease time.Duration, open enforcer.Datapath) *agent {
	t.Helper()
	a := &agent{kernel: &kernel{states: map[string]datapath.State{}, found: map[string]answer{}}, wire: &wire{}}
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { a.wire.next = next; return a.wire })
	source, err := pods.NewAPIServer(config, name, logr.Discard())
	must(t, err)
	clients, err := kubernetes.NewForConfig(config)
	must(t, err)
	policy, err := node.ParsePolicy(advertise, 1)
	must(t, err)
	writer := condition.New(condition.ByAPI(clients.CoreV1()), source, logr.Discard())
	if open == nil {
		open = a.kernel
	}
	a.Enforcer, err = enforcer.New(enforcer.Options{
		Source: source, Datapath: open, Qdiscs: a.kernel, Observer: writer, Rivals: a.kernel, Log: logr.Discard(),
		Scan: func(bool) (enforcer.Scan, error) { return a.kernel, nil }, Resync: time.Second,
	})
	must(t, err)
	broadcaster := record.NewBroadcaster()
	t.Cleanup(broadcaster.Shutdown)
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: clients.CoreV1().Events("")})
	advertiser, err := node.New(node.Options{
		Config: config, Node: name, Namespace: "kubepace-system", Policy: policy, Lease: lease,
		Agent: a.Enforcer, Source: source, Log: logr.Discard(),
		Events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubepace-enforcer", Host: name}),
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	group, ctx := errgroup.WithContext(ctx)
	for _, task := range []func(context.Context) error{source.Run, a.Run, writer.Run, advertiser.Run} {
		group.Go(func() error { return task(ctx) })
	}
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("agent of %s: %v", name, err)
		}
	})
	t.Cleanup(a.stop)
	return a
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wire counts an agent's writes of pods, and can cut all of its writes.
type wire struct {
	next   http.RoundTripper
	mu     sync.Mutex
	writes int
	cut    bool
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch {
		w.mu.Lock()
		cut := w.cut
		if !cut && slices.Contains(pathOf(r), "pods") {
			w.writes++
		}
		w.mu.Unlock()
		if cut {
			return nil, errors.New("the API server is away")
		}
	}
	return w.next.RoundTrip(r)
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

func (w *wire) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}
