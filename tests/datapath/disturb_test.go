// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
)

// disturbance is what somebody does to the hook of a limited pod's device.
type disturbance struct {
	name string
	tcx  bool // else by clsact
	do   func(n *node, ifindex int) error
	said string // what the agent's log says of it
}

func disturbances() []disturbance {
	pinned := func(n *node, ifindex int) (string, error) {
		found, err := filepath.Glob(filepath.Join(n.flags[1], "*", "links", strconv.Itoa(ifindex)))
		if err != nil || len(found) != 1 {
			return "", os.ErrNotExist
		}
		return found[0], nil
	}
	return []disturbance{
		{"tcx link detached", true, func(n *node, ifindex int) error {
			pin, err := pinned(n, ifindex)
			if err != nil {
				return err
			}
			l, err := link.LoadPinnedLink(pin, nil)
			if err != nil {
				return err
			}
			defer l.Close()
			return l.Detach()
		}, "somebody removed kubepace's program"},
		{"tcx link's pin deleted", true, func(n *node, ifindex int) error {
			pin, err := pinned(n, ifindex)
			if err != nil {
				return err
			}
			return os.Remove(pin)
		}, "somebody removed kubepace's program"},
		{"another program at the head", true, func(n *node, ifindex int) error {
			prog, err := letAllPass()
			if err != nil {
				return err
			}
			defer prog.Close()
			l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err == nil {
				n.t.Cleanup(func() { l.Close() })
			}
			return err
		}, "rival"},
		{"filter deleted", false, func(_ *node, ifindex int) error {
			return netlink.FilterDel(bpfFilter(ifindex, 0, 0x6b70, "kubepace_egress"))
		}, "somebody removed kubepace's program"},
		{"clsact deleted", false, func(_ *node, ifindex int) error {
			return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}})
		}, "somebody removed kubepace's program"},
		{"filter of preference 1 added after ours", false, func(_ *node, ifindex int) error {
			prog, err := letAllPass()
			if err != nil {
				return err
			}
			defer prog.Close()
			return netlink.FilterAdd(bpfFilter(ifindex, prog.FD(), 1, "rival"))
		}, "rival"},
	}
}

// letAllPass ends the hook's run: what comes after it sees no packet.
func letAllPass() (*ebpf.Program, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11
		return nil, err
	}
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rival", Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL",
	})
}

func bpfFilter(ifindex, fd int, handle uint32, name string) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: handle, Protocol: unix.ETH_P_ALL, Priority: 1,
		},
		Fd: fd, Name: name, DirectAction: true,
	}
}

// TestDisturbedLimitComesBack: somebody takes our program off a pod's device or goes before it. The agent puts it
// right without being asked, says so, and the limit holds.
func TestDisturbedLimitComesBack(t *testing.T) {
	if quick(t) {
		return
	}
	const rate = 10 * bandwidth.Megabit
	n := newNode(t)
	n.kill(syscall.SIGTERM)
	// No resync helps: what is tested is that it is noticed.
	n.agentFlags = []string{"--resync", "1h"}
	n.start(filepath.Dir(n.Pods[0].NetnsPath))
	n.write(0, rate.String())
	n.await("pod0=10M")
	ifindex := n.Pods[0].HostIndex
	tcx := n.list()[0].Devices[0].Hook == "tcx"
	l := &lab{Topology: n.Topology, t: t}
	if n.list()[0].Mode == "pacing" {
		l.mode = 1
	}
	onOneCPU(t)
	for _, d := range disturbances() {
		if d.tcx != tcx {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			seen := n.log.Len()
			began := time.Now()
			if err := n.Node.Do(func() error { return d.do(n, ifindex) }); err != nil {
				t.Fatal(err)
			}
			said := func() bool {
				return strings.Contains(n.log.From(seen), "limit was disturbed and is in force again") && strings.Contains(n.log.From(seen), d.said)
			}
			for deadline := time.Now().Add(20 * time.Second); !said() && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("put right after %v", time.Since(began).Round(time.Millisecond))
			if !said() {
				t.Fatalf("the agent's log does not say %q:\n%s", d.said, n.log.From(seen))
			}
			if dev := n.list()[0].Devices[0]; dev.Hook == "" || dev.Behind != "" {
				t.Errorf("list shows %+v; want our program attached and first", dev)
			}
			l.flood(t, n.Remote, rate, 1200, time.Second)
		})
	}
}
