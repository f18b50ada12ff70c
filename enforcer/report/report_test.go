// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/qdisc"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func golden(t *testing.T, name string, write func(*bytes.Buffer) error) {
	t.Helper()
	var got bytes.Buffer
	if err := write(&got); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func pod(namespace, name string) datapath.Pod {
	return datapath.Pod{Namespace: namespace, Name: name, UID: "uid-" + name}
}

// states are what the kernel holds, at the n-th reading.
func states(n uint64) []datapath.State {
	device := func(index int, name string, hook datapath.Hook) datapath.Device {
		return datapath.Device{Index: index, Name: name, Hook: hook}
	}
	return []datapath.State{
		{
			Limit: datapath.Limit{Pod: pod("default", "idle"), Rate: bandwidth.MustParse("1500k"), Mode: datapath.ModePolicing,
				Devices: []datapath.Device{device(7, "veth7", datapath.HookClsact)}},
			Horizon: 300 * time.Millisecond,
		},
		{
			Limit: datapath.Limit{Pod: pod("shop", "web"), Rate: bandwidth.MustParse("10M"), Mode: datapath.ModePacing,
				Devices: []datapath.Device{device(5, "veth5", datapath.HookTCX), device(6, "veth6", datapath.HookTCX)}},
			Counters: datapath.Counters{Packets: 1000 * n, Bytes: 1250000 * n, Delayed: 900 * n, Sparse: 3, Marked: 12, Dropped: 4, DroppedBytes: 6056},
			Backlog:  12345 * time.Microsecond, Horizon: 100 * time.Millisecond,
		},
		{
			Limit:   datapath.Limit{Pod: pod("shop", "worn"), Rate: bandwidth.MustParse("5M"), Devices: []datapath.Device{device(9, "", datapath.HookNone)}},
			Horizon: 300 * time.Millisecond,
		},
	}
}

func agent() enforcer.Status {
	return enforcer.Status{
		Identity: enforcer.Identity{Version: "v0.1.0", Node: "node1", Source: "API server", Started: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)},
		Updated:  time.Date(2026, 7, 1, 12, 30, 0, 0, time.UTC), Synced: true,
		Exits:    []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "fq", Paced: true}},
		Problems: []string{"read manifest /pods/x.yaml: kind: is wrong"},
		Pods: []enforcer.Verdict{
			{Pod: pod("shop", "web"), Enforced: true, Limit: bandwidth.MustParse("10M")},
			{Pod: pod("shop", "host"), Limit: bandwidth.MustParse("2G"), Reason: "the pod shares the node's network namespace"},
			{Pod: pod("shop", "typo"), Reason: `metadata.annotations[kubernetes.io/egress-bandwidth]: "10 megabits" is not a Kubernetes quantity`},
		},
	}
}

// fake is a Source whose readings are a second apart.
func fake(running bool) Source {
	var n uint64
	now := time.Unix(0, 0)
	return Source{
		Read:    func() ([]datapath.State, error) { n++; return states(n), nil },
		Status:  func() (enforcer.Status, error) { return agent(), nil },
		Running: func() (bool, error) { return running, nil },
		Now:     func() time.Time { now = now.Add(time.Second); return now },
	}
}

func empty() Source {
	return Source{
		Read:    func() ([]datapath.State, error) { return nil, fmt.Errorf("no pins: %w", os.ErrNotExist) },
		Status:  func() (enforcer.Status, error) { return enforcer.Status{}, os.ErrNotExist },
		Running: func() (bool, error) { return false, nil },
		Now:     time.Now,
	}
}

func list(t *testing.T, s Source) List {
	t.Helper()
	l, err := ListPods(context.Background(), s, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestList(t *testing.T) {
	golden(t, "list.txt", func(b *bytes.Buffer) error { return list(t, fake(true)).WriteText(b) })
	golden(t, "list.json", func(b *bytes.Buffer) error { return list(t, fake(true)).WriteJSON(b) })
}

func TestListOfNothing(t *testing.T) {
	golden(t, "list-empty.txt", func(b *bytes.Buffer) error { return list(t, empty()).WriteText(b) })
	golden(t, "list-empty.json", func(b *bytes.Buffer) error { return list(t, empty()).WriteJSON(b) })
}

func TestListErrors(t *testing.T) {
	s := empty()
	s.Read = func() ([]datapath.State, error) { return nil, os.ErrPermission }
	if _, err := ListPods(context.Background(), s, 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error %v; want the kernel's", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := ListPods(ctx, fake(true), time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want context.Canceled", err)
	}
}

// node is a Node with these exit devices.
func node(r qdisc.Result, f datapath.Features, probeErr error) Node {
	return Node{
		Probe:             func() (datapath.Features, error) { return f, probeErr },
		Exits:             func([]string, []int) (qdisc.Result, error) { return r, nil },
		CongestionControl: func() (string, error) { return "cubic", nil },
	}
}

func TestStatus(t *testing.T) {
	paced := qdisc.Result{Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "mq(4×fq)", Paced: true}}}
	policed := qdisc.Result{
		Exits: []qdisc.Device{{Index: 2, Name: "eth0", Qdisc: "pfifo_fast", Reason: "needs CONFIG_NET_SCH_FQ (sch_fq)"}, {Index: 3, Name: "eth1", Qdisc: "htb", Reason: "qdisc htb 1: was set by an administrator and stays"}},
		Fq:    &qdisc.MissingError{Option: "CONFIG_NET_SCH_FQ (sch_fq)"},
	}
	all := datapath.Features{Kernel: "6.12.1", TCX: true, Stamp: true}
	for name, test := range map[string]struct {
		source Source
		node   Node
	}{
		"pacing":       {fake(true), node(paced, all, nil)},
		"agent-down":   {fake(false), node(policed, all, nil)},
		"no-agent":     {empty(), node(qdisc.Result{}, datapath.Features{Kernel: "5.10.0"}, nil)},
		"unprivileged": {empty(), node(qdisc.Result{Fq: errors.New("probe fq: operation not permitted")}, datapath.Features{}, errors.New("probe: operation not permitted"))},
	} {
		st, err := Inspect(test.source, test.node, "/sys/fs/bpf/kubepace", nil)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "status-"+name+".txt", func(b *bytes.Buffer) error { return st.WriteText(b) })
		golden(t, "status-"+name+".json", func(b *bytes.Buffer) error { return st.WriteJSON(b) })
	}
}

func TestStatusAsksForTheAgentsDevices(t *testing.T) {
	var got []string
	n := node(qdisc.Result{}, datapath.Features{}, nil)
	n.Exits = func(names []string, veths []int) (qdisc.Result, error) {
		got = names
		if diff := cmp.Diff([]int{7, 5, 6, 9}, veths); diff != "" {
			t.Errorf("pods' devices (-want +got):\n%s", diff)
		}
		return qdisc.Result{}, nil
	}
	for _, test := range []struct {
		running bool
		flag    []string
		want    []string
	}{{true, nil, []string{"eth0"}}, {false, nil, nil}, {true, []string{"eth9"}, []string{"eth9"}}} {
		if _, err := Inspect(fake(test.running), n, "", test.flag); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("running %v, flag %v: devices asked for (-want +got):\n%s", test.running, test.flag, diff)
		}
	}
}

func TestRate(t *testing.T) {
	for bps, want := range map[int64]string{
		0: "0", 999: "999", 1000: "1k", 9510000: "9.51M", 10000000: "10M", 99949999: "99.9M", 99960000: "100M", 123456789: "123M",
		999600: "1M", 1500000: "1.5M", 2345678901: "2.35G", 1e15: "1P",
	} {
		if got := Rate(bps); got != want {
			t.Errorf("Rate(%d) = %q; want %q", bps, got, want)
		}
	}
}
