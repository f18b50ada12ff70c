// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

// kernel stands in for the eBPF datapath.
type kernel struct {
	mu        sync.Mutex
	states    map[string]datapath.State
	features  datapath.Features
	sets      int
	calls     []string
	repairs   []datapath.Repair
	setErr    error
	statesErr error
	early     []int // devices
	expected  []int // pods
}

func (k *kernel) Set(l datapath.Limit) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.setErr != nil {
		return k.setErr
	}
	k.sets++
	k.calls = append(k.calls, "set "+l.Pod.Name)
	devices := slices.Clone(l.Devices)
	for i := range devices {
		devices[i].Hook = datapath.HookTCX
	}
	l.Devices = devices
	k.states[l.Pod.UID] = datapath.State{Limit: l}
	return nil
}

func (k *kernel) Remove(uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "remove "+uid)
	delete(k.states, uid)
	return nil
}

func (k *kernel) States() (list []datapath.State, err error) {
	for _, s := range k.states {
		list = append(list, s)
	}
	return list, k.statesErr
}

func (k *kernel) Known() ([]datapath.State, error) { return k.States() }

func (k *kernel) Disturbed() bool { return false }

func (k *kernel) Repairs() []datapath.Repair {
	list := k.repairs
	k.repairs = nil
	return list
}

func (k *kernel) Features() datapath.Features { return k.features }

func (k *kernel) Early(ifindex int) (attach func()) {
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.early = append(k.early, ifindex)
	}
}

func (k *kernel) Expect(pods int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expected = append(k.expected, pods)
	return nil
}

type source struct {
	snapshot pods.Snapshot
	changes  chan struct{}
}

func (s *source) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (s *source) Snapshot() pods.Snapshot       { return s.snapshot }
func (s *source) Changes() <-chan struct{}      { return s.changes }

type exits struct {
	result qdisc.Result
	err    error
	veths  []int
	syncs  int
}

func (x *exits) Sync(veths []int) (qdisc.Result, error) {
	x.veths, x.syncs = veths, x.syncs+1
	return x.result, x.err
}

// network answers by the pod's first address.
type network struct {
	mu     sync.Mutex
	found  map[string]device.Found
	finds  int
	wholes int
	torn   bool                    // pods got further interfaces
	brief  bool                    // a brief question gets a brief answer
	still  []device.Link           // devices that are there as well
	asked  map[string]device.Query // latest, by UID
	err    error
}

func (n *network) Find(q device.Query) (device.Found, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.finds++
	n.asked[q.UID] = q
	if q.Left {
		return device.Found{}, &device.NotFoundError{Dir: "/netns", Left: true}
	}
	for _, ip := range q.IPs {
		if f, ok := n.found[ip.String()]; ok {
			f.Told, f.Outside = len(q.Sandboxes) > 0, q.Brief && n.brief
			if f.Outside {
				f.Unheld = nil
			}
			return f, n.err
		}
	}
	return device.Found{}, &device.NotFoundError{IPs: q.IPs, Dir: "/netns"}
}

func (n *network) Current(links []device.Link) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		if !slices.Contains(n.still, l) && !slices.ContainsFunc(slices.Collect(values(n.found)), func(f device.Found) bool { return slices.Contains(f.Devices, l) }) {
			return false
		}
	}
	return len(links) > 0
}

func values(m map[string]device.Found) func(func(device.Found) bool) {
	return func(yield func(device.Found) bool) {
		for _, f := range m {
			if !yield(f) {
				return
			}
		}
	}
}

// Whole reports whether the pod's interfaces are those that were found.
func (n *network) Whole(found device.Found) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wholes++
	return !n.torn
}

func (n *network) Close() {}

// world is an enforcer with everything around it played.
type world struct {
	t       *testing.T
	kernel  *kernel
	source  *source
	exits   *exits
	network *network
	log     []string
	told    []string
	clock   time.Time
	*Enforcer
}

func (w *world) Changed(pod pods.Pod, v Verdict) {
	w.told = append(w.told, pod.Name+": "+v.Reason)
}

func (w *world) Released(pod pods.Pod) { w.told = append(w.told, pod.Name+" released") }

func newWorld(t *testing.T) *world {
	w := &world{
		t:       t,
		kernel:  &kernel{states: map[string]datapath.State{}, features: datapath.Features{Kernel: "6.1", Stamp: true}},
		source:  &source{snapshot: pods.Snapshot{Complete: true}, changes: make(chan struct{}, 1)},
		exits:   &exits{result: qdisc.Result{Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "fq", Paced: true}}}},
		network: &network{found: map[string]device.Found{}, asked: map[string]device.Query{}},
		clock:   time.Unix(1000, 0),
	}
	e, err := New(Options{
		Source: w.source, Datapath: w.kernel, Qdiscs: w.exits, Observer: w,
		Scan:       func(bool) (Scan, error) { return w.network, nil },
		StatusFile: filepath.Join(t.TempDir(), "status.json"),
		Log:        funcr.New(func(_, args string) { w.log = append(w.log, args) }, funcr.Options{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	e.now = func() time.Time { return w.clock }
	w.Enforcer = e
	return w
}

// pod adds a pod; an ip also gives it a device whose ifindex is the address's last byte.
func (w *world) pod(name, limit, ip string) *pods.Pod {
	p := pods.Pod{Pod: datapath.Pod{Namespace: "default", Name: name, UID: "uid-" + name}, Phase: corev1.PodRunning, Origin: pods.OriginAPI}
	if limit != "" {
		p.Rate = bandwidth.MustParse(limit)
	}
	if ip != "" {
		addr := netip.MustParseAddr(ip)
		p.IPs = []netip.Addr{addr}
		w.network.found[ip] = found(int(addr.AsSlice()[3]))
	}
	w.source.snapshot.Pods = append(w.source.snapshot.Pods, p)
	return &w.source.snapshot.Pods[len(w.source.snapshot.Pods)-1]
}

func found(index int) device.Found {
	return device.Found{Devices: []device.Link{{Device: datapath.Device{Index: index, Name: "veth"}, Type: "veth"}}}
}

func (w *world) wantLimit(name, rate string, mode datapath.Mode) {
	w.t.Helper()
	s, ok := w.kernel.states["uid-"+name]
	if !ok || s.Rate.String() != rate || s.Mode != mode {
		w.t.Errorf("%s: kernel holds %v %v (%v); want %s %v", name, s.Rate, s.Mode, ok, rate, mode)
	}
}

func (w *world) verdict(name string) Verdict {
	w.t.Helper()
	for _, v := range w.Status().Pods {
		if v.Name == name {
			return v
		}
	}
	w.t.Errorf("%s is not in the status", name)
	return Verdict{}
}

func (w *world) wantReason(name string, enforced bool, parts ...string) {
	w.t.Helper()
	v := w.verdict(name)
	if v.Enforced != enforced || (len(parts) == 0 && v.Reason != "") {
		w.t.Errorf("%s: enforced %v, reason %q; want %v, %q", name, v.Enforced, v.Reason, enforced, parts)
	}
	for _, part := range parts {
		if !strings.Contains(v.Reason, part) {
			w.t.Errorf("%s: reason %q lacks %q", name, v.Reason, part)
		}
	}
}

func (w *world) wantCodes(want map[string]Code) {
	w.t.Helper()
	for name, code := range want {
		if got := w.verdict(name).Code; got != code {
			w.t.Errorf("%s: code %q; want %q", name, got, code)
		}
	}
}
