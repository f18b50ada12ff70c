// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// snapshot is what tools and files show of the machine. Two compare equal, to the byte, if nothing was left behind.
type snapshot map[string]string

func (m *machine) snapshot() snapshot {
	m.t.Helper()
	s := snapshot{"run folder": m.tree(m.run), "bpffs": m.tree(filepath.Dir(m.bpffs)), "sysctls": m.sysctls()}
	for _, command := range []string{"ip -d link", "ip -d addr", "ip -d route show table all", "tc qdisc", "tc class show dev admin0"} {
		s[command] = m.tool(command)
	}
	links, err := netlink.LinkList()
	m.must(err, "list devices")
	for _, l := range links {
		for _, side := range []string{"ingress", "egress"} {
			command := "tc filter show dev " + l.Attrs().Name + " " + side
			s[command] = m.tool(command)
		}
	}
	return s
}

func (m *machine) tool(command string) string {
	m.t.Helper()
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil && !strings.Contains(command, "filter") { // a device without a hook has no filters to show
		m.t.Errorf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

func (m *machine) tree(root string) string {
	m.t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			fmt.Fprintln(&text, path, d.Type())
		}
		return nil //nolint:nilerr // what is not there is not shown
	})
	m.must(err, "walk "+root)
	return text.String()
}

// sysctls are all of the network namespace; what counts, or cannot be read, is left out.
func (m *machine) sysctls() string {
	m.t.Helper()
	var text strings.Builder
	err := filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_count") {
			return nil //nolint:nilerr // as above
		}
		if data, err := os.ReadFile(path); err == nil {
			fmt.Fprintf(&text, "%s = %s", path, data)
		}
		return nil
	})
	m.must(err, "walk sysctls")
	return text.String()
}

// furnish makes the machine one that others have used: an uplink, an administrator's qdisc, and a pod that the CNI
// bandwidth plugin limits.
func (m *machine) furnish() {
	m.t.Helper()
	m.must(os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0o600), "set congestion control")
	// Addresses that the kernel makes by itself change while it looks for duplicates.
	for _, scope := range []string{"all", "default"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0o600) // where there is IPv6
	}
	m.pod("outside", "up0", "192.0.2.1/24")
	up := m.device("up0")
	m.must(netlink.AddrAdd(up, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 2), Mask: net.CIDRMask(24, 32)}}), "add address")
	m.must(netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}), "add default route")
	m.pod("elsewhere", "admin0", "198.51.100.1/24")
	admin := m.device("admin0")
	_, dst, _ := net.ParseCIDR("198.51.100.0/24")
	m.must(netlink.RouteAdd(&netlink.Route{LinkIndex: admin.Attrs().Index, Dst: dst}), "add route")
	m.must(netlink.QdiscAdd(netlink.NewHtb(netlink.QdiscAttrs{
		LinkIndex: admin.Attrs().Index, Handle: 0x10000, Parent: netlink.HANDLE_ROOT,
	})), "add htb")
	m.pod("plugged", "veth-plugged", "10.1.0.2/24")
	m.plug("veth-plugged", "bwp0123456789")
}

// settle waits until the kernel has looked at the carriers of new devices, which it does at most once a second.
func (m *machine) settle() {
	m.t.Helper()
	for range 100 {
		before := m.tool("ip -d link")
		time.Sleep(1500 * time.Millisecond)
		if m.tool("ip -d link") == before {
			return
		}
	}
	m.t.Error("devices do not come to rest")
}

// plug is what the CNI bandwidth plugin leaves: what the pod sends goes to an IFB with a token bucket.
func (m *machine) plug(device, name string) {
	m.t.Helper()
	m.must(netlink.LinkAdd(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name}}), "add ifb")
	ifb, pod := m.device(name).Attrs().Index, m.device(device).Attrs().Index
	for _, index := range []int{ifb, pod} {
		// Not only added: where the kernel has fq, the agent may have put it there meanwhile.
		m.must(netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: 0x10000, Parent: netlink.HANDLE_ROOT},
			Rate:       1250000, Limit: 100000, Buffer: 100000,
		}), "add tbf")
	}
	err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: pod, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}})
	parent := netlink.MakeHandle(0xffff, 0)
	if errors.Is(err, unix.EEXIST) { // a clsact, as the agent adds before Linux 6.6, takes the same filters
		parent, err = netlink.HANDLE_MIN_INGRESS, nil
	}
	m.must(err, "add ingress qdisc")
	m.must(netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: pod, Parent: parent, Priority: 49152, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1), Actions: []netlink.Action{netlink.NewMirredAction(ifb)},
	}), "add redirect")
}

func (m *machine) device(name string) netlink.Link {
	m.t.Helper()
	link, err := netlink.LinkByName(name)
	m.must(err, "find "+name)
	m.must(netlink.LinkSetUp(link), "set up "+name)
	return link
}

// churn makes n pods, waits until all are limited, and takes them away again.
func (m *machine) churn(first, n int) {
	m.t.Helper()
	for i := first; i < first+n; i++ {
		name := fmt.Sprintf("pod%d", i)
		path := filepath.Join(m.netnsd, name)
		ns, err := netns.New()
		m.must(err, "make network namespace")
		m.must(os.WriteFile(path, nil, 0o600), "make mount point")
		m.must(unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, ""), "mount namespace")
		m.must(netns.Set(m.ns), "go back")
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("veth%d", i)
		m.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}), "add veth")
		m.must(ns.Close(), "close namespace")
		m.write(name, "10M", "    egress.kubepace.io/netns: "+path+"\n")
	}
	m.wantEnforced(1 + n)
	for i := first; i < first+n; i++ {
		path := filepath.Join(m.netnsd, fmt.Sprintf("pod%d", i))
		// Half of the pods' devices go first, half of the manifests do.
		manifest := filepath.Join(m.manifests, fmt.Sprintf("pod%d.yaml", i))
		if i%2 == 0 {
			m.must(os.Remove(manifest), "remove manifest")
		}
		m.must(netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("veth%d", i)}}), "delete veth")
		m.must(unix.Unmount(path, unix.MNT_DETACH), "unmount namespace")
		m.must(os.Remove(path), "remove mount point")
		if i%2 != 0 {
			m.must(os.Remove(manifest), "remove manifest")
		}
	}
	m.wantEnforced(1)
}

// wantEnforced waits until the list holds exactly n pods, all enforced.
func (m *machine) wantEnforced(n int) {
	m.t.Helper()
	enforced, rows := 0, 0
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		enforced, rows = 0, 0
		for _, r := range m.list() {
			rows++
			if r.Enforced {
				enforced++
			}
		}
		if enforced == n && rows == n {
			return
		}
	}
	m.t.Errorf("list holds %d pods, %d enforced; want %d", rows, enforced, n)
}

// TestAgentLeavesNothing: a thousand pods come and go, and cleanup leaves the machine as it was before the agent.
func TestAgentLeavesNothing(t *testing.T) {
	if os.Getenv("KUBEPACE_QUICK") == "true" {
		t.Log("left out: quick: `make test-vm` has it")
		return
	}
	pods, batch := 1000, 100
	if testing.Short() {
		pods, batch = 20, 10
	}
	onMachine(t, func(m *machine) {
		for _, tool := range []string{"ip", "tc"} {
			_, err := exec.LookPath(tool)
			m.must(err, "look for "+tool)
		}
		m.furnish()
		m.settle()
		before := m.snapshot()
		m.write("plugged", "10M", "status: {podIP: 10.1.0.2}\n")
		m.start("--bbr", "--other-limiters=take-over")
		m.want("plugged 10M veth-plugged the CNI bandwidth plugin limits what the pod sends")
		during := m.snapshot()
		for _, what := range []string{"run folder", "bpffs", "sysctls"} {
			if before[what] == during[what] {
				t.Errorf("%s is the same while the agent runs; the snapshot sees nothing", what)
			}
		}
		if status := m.call("status"); !strings.Contains(status, "Sysctl net.ipv4.tcp_congestion_control: bbr, set by kubepace (--bbr); was reno") {
			t.Errorf("status does not tell of --bbr:\n%s", status)
		}
		began := time.Now()
		for first := 0; first < pods; first += batch {
			m.churn(first, batch)
		}
		t.Logf("%d pods came and went in %v", pods, time.Since(began).Round(time.Second))
		m.must(os.Remove(filepath.Join(m.manifests, "plugged.yaml")), "remove manifest")
		m.stop(syscall.SIGTERM)
		m.call("cleanup")
		if diff := cmp.Diff(before, m.snapshot()); diff != "" {
			t.Errorf("the machine (-before +after cleanup):\n%s", diff)
		}
	})
}

// TestAgentStandsDown: what a person sees of a pod that the CNI bandwidth plugin limits, and of one that it stops to
// limit.
func TestAgentStandsDown(t *testing.T) {
	onMachine(t, func(m *machine) {
		m.furnish()
		before := m.snapshot()
		m.write("plugged", "10M", "status: {podIP: 10.1.0.2}\n")
		m.start()
		m.want("plugged 10M another limiter is in charge: the CNI bandwidth plugin limits what the pod sends (tbf on bwp0123456789, to which veth-plugged redirects)")
		if status := m.call("status"); !strings.Contains(status, "plugged is not enforced: another limiter is in charge: the CNI bandwidth plugin") {
			t.Errorf("status:\n%s", status)
		}
		m.must(netlink.LinkDel(m.device("bwp0123456789")), "delete ifb")
		m.want("plugged 10M veth-plugged")
		m.must(netlink.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: m.device("veth-plugged").Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}), "delete ingress qdisc")
		m.want("plugged 10M veth-plugged")
		m.must(netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: m.device("veth-plugged").Attrs().Index, Handle: 0x10000, Parent: netlink.HANDLE_ROOT,
		}}), "delete tbf")
		m.plug("veth-plugged", "bwcali01234567")
		m.want("plugged 10M another limiter is in charge: Calico's QoS limits what the pod sends (tbf on bwcali01234567")
		m.stop(syscall.SIGTERM)
		m.call("cleanup")
		after := m.snapshot()
		for _, what := range []string{"run folder", "bpffs"} {
			if diff := cmp.Diff(before[what], after[what]); diff != "" {
				t.Errorf("%s (-before +after cleanup):\n%s", what, diff)
			}
		}
	})
}
