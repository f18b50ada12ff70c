// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/internal/rtnl"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a network namespace with a bpffs, where limiters are put together from what they leave in the kernel.
type lab struct {
	*testing.T
	bpffs   string
	scanner *Scanner
}

func inLab(t *testing.T, f func(l *lab)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true lets no test skip")
		}
		t.Skip("needs root: makes network namespaces and loads eBPF")
	}
	l := &lab{T: t, bpffs: t.TempDir()}
	l.must(unix.Mount("bpf", l.bpffs, "bpf", 0, ""), "mount bpffs")
	t.Cleanup(func() { _ = unix.Unmount(l.bpffs, unix.MNT_DETACH) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		l.must(unix.Unshare(unix.CLONE_NEWNET), "unshare")
		l.must(rlimit.RemoveMemlock(), "lift RLIMIT_MEMLOCK")
		scanner, err := New(l.bpffs)
		l.must(err, "new scanner")
		defer scanner.Close()
		l.scanner = scanner
		f(l)
	}()
	<-done
}

func (l *lab) must(err error, what string) {
	l.Helper()
	if err != nil {
		l.Errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}

func (l *lab) add(link netlink.Link) int {
	l.Helper()
	l.must(netlink.LinkAdd(link), "add "+link.Attrs().Name)
	got, err := netlink.LinkByName(link.Attrs().Name)
	l.must(err, "find "+link.Attrs().Name)
	l.must(netlink.LinkSetUp(got), "set up")
	return got.Attrs().Index
}

func (l *lab) veth(name string) int {
	return l.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
}

func (l *lab) ifb(name string) int {
	return l.add(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name}})
}

func (l *lab) tbf(index int) {
	l.Helper()
	l.must(netlink.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: 0x10000, Parent: netlink.HANDLE_ROOT},
		Rate:       125000, Limit: 100000, Buffer: 100000,
	}), "add tbf")
}

// redirect is what the CNI bandwidth plugin and Calico put on a pod's device: all goes to the IFB.
func (l *lab) redirect(from, to int, priority uint16) *netlink.U32 {
	l.Helper()
	l.must(netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}), "add ingress qdisc")
	u32 := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: netlink.MakeHandle(0xffff, 0), Priority: priority, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1), Actions: []netlink.Action{netlink.NewMirredAction(to)},
	}
	l.must(netlink.FilterAdd(u32), "add redirect")
	return u32
}

func (l *lab) want(device int, exits []int, who string) {
	l.Helper()
	two := []int{device, 9999}
	for _, devices := range [][]int{two, slices.Repeat(two, 3), slices.Repeat(two, many)} { // asked one by one; listed
		look := func() error {
			found, err := l.scanner.Look(devices, exits)
			if r := found[device]; r.Who != who || len(found) > 1 {
				l.Errorf("of %d devices found %+v; want %q", len(devices), found, who)
			}
			return err
		}
		l.must(look(), "look")
		l.must(l.scanner.host.Ask(func(*rtnl.Conn) error { return look() }), "look while another one goes on")
	}
}

func TestTokenBucketsBehindRedirects(t *testing.T) {
	for name, who := range map[string]string{"bwp0123456789": "the CNI bandwidth plugin", "bwcali01234567": "Calico's QoS", "ifb7": "somebody"} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				pod := l.veth("veth7")
				l.want(pod, nil, "")
				l.tbf(pod) // limits what the pod receives: no matter of ours
				l.want(pod, nil, "")
				shaper := l.ifb(name)
				l.redirect(pod, shaper, 1)
				l.want(pod, nil, "") // nothing is limited yet
				l.tbf(shaper)
				l.want(pod, nil, who)
				link, err := netlink.LinkByIndex(shaper)
				l.must(err, "find ifb")
				l.must(netlink.LinkDel(link), "delete ifb")
				l.want(pod, nil, "")
				ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: pod, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}}
				l.must(netlink.QdiscDel(ingress), "delete the ingress qdisc")
				l.want(pod, nil, "")
			})
		})
	}
}

// TestCilium stands in for Cilium by maps of its layout and programs of its names.
func TestCilium(t *testing.T) {
	inLab(t, func(l *lab) {
		pod, other, exit := l.veth("lxc7"), l.veth("lxc8"), l.veth("eth9")
		exits := []int{exit}
		for _, index := range []int{pod, other} {
			l.program(index, netlink.HANDLE_MIN_INGRESS, "cil_from_container")
		}
		l.want(pod, exits, "")
		folder := filepath.Join(l.bpffs, ciliumFolder)
		l.must(os.MkdirAll(folder, 0o755), "make folder")
		if l.scanner.Unseen() {
			l.Error("unseen limiters are expected without Cilium's maps")
		}
		throttle := l.pinned(folder, ciliumThrottle, 8, 24)
		defer throttle.Close()
		if !l.scanner.Unseen() {
			l.Error("Cilium's map is not seen")
		}
		l.want(pod, exits, "") // chained, and nothing where packets leave
		l.program(exit, netlink.HANDLE_MIN_EGRESS, "cil_to_netdev-eth9")
		l.want(pod, exits, "Cilium's bandwidth manager") // which pods it limits cannot be read

		lxc := l.pinned(folder, ciliumLXC, 20, 48)
		defer lxc.Close()
		l.want(pod, exits, "") // it does not know this one
		endpoint, address := make([]byte, 48), make([]byte, 20)
		binary.NativeEndian.PutUint32(endpoint, uint32(pod))
		binary.NativeEndian.PutUint16(endpoint[6:], 1234)
		l.must(lxc.Put(address, endpoint), "write endpoint")
		l.want(pod, exits, "") // it knows it, and has no limit for it
		number, limit := make([]byte, 8), make([]byte, 24)
		binary.NativeEndian.PutUint32(number, 1234)
		binary.NativeEndian.PutUint64(limit, 1250000)
		l.must(throttle.Put(number, limit), "write limit")
		l.want(pod, exits, "Cilium's bandwidth manager")
		l.want(other, exits, "")
	})
}

func (l *lab) pinned(folder, name string, key, value uint32) *ebpf.Map {
	l.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Hash, KeySize: key, ValueSize: value, MaxEntries: 16})
	l.must(err, "make map")
	l.must(m.Pin(filepath.Join(folder, name)), "pin map")
	return m
}

// program attaches by clsact, which every kernel has; the names are the same with tcx.
func (l *lab) program(index int, parent uint32, name string) {
	l.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, License: "GPL",
	})
	l.must(err, "load program")
	defer prog.Close()
	l.must(netlink.QdiscReplace(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}), "add clsact")
	l.must(netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          prog.FD(), Name: name, DirectAction: true,
	}), "add filter")
}

func TestPolicer(t *testing.T) {
	inLab(t, func(l *lab) {
		pod := l.veth("veth7")
		l.must(netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: pod, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}), "add ingress qdisc")
		police := netlink.NewPoliceAction()
		police.Rate, police.Burst, police.Mtu, police.ExceedAction = 125000, 10000, 1500, netlink.TC_POLICE_SHOT
		err := netlink.FilterAdd(&netlink.MatchAll{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: pod, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
			Actions:     []netlink.Action{police},
		})
		if err != nil {
			t.Logf("left out: this kernel takes no policer: %v", err)
			return
		}
		l.want(pod, nil, "a policer")
	})
}
