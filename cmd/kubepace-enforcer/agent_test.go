// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/enforcer/report"
)

// asProgram makes the test binary be kubepace-enforcer: it is what the tests start.
const asProgram = "KUBEPACE_TEST_AS_PROGRAM"

func init() {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		if os.Getenv(withoutBPF) != "" {
			refuseBPF()
		}
		main()
	}
}

// machine is a network namespace that plays a node, with its own bpffs folder and run folder.
type machine struct {
	t                             *testing.T
	ns                            netns.NsHandle
	bpffs, run, manifests, netnsd string
	agent                         *exec.Cmd
	log                           *bytes.Buffer
	environment                   []string // more of it, for the agent
}

// onMachine runs f on a thread in a fresh network namespace; what f starts is there too.
func onMachine(t *testing.T, f func(m *machine)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true lets no test skip")
		}
		t.Skip("needs root: makes network namespaces and loads eBPF")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		ns, err := netns.New()
		if err != nil {
			t.Errorf("make network namespace: %v", err)
			return
		}
		defer ns.Close()
		dir := t.TempDir()
		bpf := filepath.Join(dir, "bpf")
		m := &machine{t: t, ns: ns, bpffs: filepath.Join(bpf, "kubepace"), run: filepath.Join(dir, "run"),
			manifests: filepath.Join(dir, "pods"), netnsd: filepath.Join(dir, "netns")}
		for _, d := range []string{bpf, m.manifests, m.netnsd} {
			m.must(os.Mkdir(d, 0o755), "make folder")
		}
		m.must(unix.Mount("bpf", bpf, "bpf", 0, ""), "mount bpffs")
		defer unix.Unmount(bpf, unix.MNT_DETACH) //nolint:errcheck // test
		defer m.stop(syscall.SIGKILL)
		f(m)
		if t.Failed() && m.log != nil {
			t.Logf("log of the agent:\n%s", m.log)
		}
	}()
	<-done
}

func (m *machine) must(err error, what string) {
	m.t.Helper()
	if err != nil {
		m.t.Errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}

// pod makes a network namespace with a veth to the node.
func (m *machine) pod(name, host, cidr string) {
	m.t.Helper()
	ns, err := netns.New()
	m.must(err, "make network namespace")
	defer ns.Close()
	path := filepath.Join(m.netnsd, name)
	m.must(os.WriteFile(path, nil, 0o600), "make mount point")
	m.must(unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, ""), "mount namespace")
	m.t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) }) //nolint:errcheck // test
	m.must(netns.Set(m.ns), "go back")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = host
	m.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}), "add veth")
	h, err := netlink.NewHandleAt(ns)
	m.must(err, "open handle")
	defer h.Close()
	link, err := h.LinkByName("eth0")
	m.must(err, "find eth0")
	ip, prefix, err := net.ParseCIDR(cidr)
	m.must(err, "parse address")
	prefix.IP = ip
	m.must(h.AddrAdd(link, &netlink.Addr{IPNet: prefix}), "add address")
}

func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

func (m *machine) start(more ...string) {
	m.t.Helper()
	m.log = &bytes.Buffer{}
	args := []string{"run", "--pod-manifests=" + m.manifests, "--bpffs=" + m.bpffs, "--run-dir=" + m.run, "--netns-dir=" + m.netnsd, "--resync=2s"}
	m.agent = m.command(append(args, more...)...)
	m.agent.Env = append(m.agent.Env, m.environment...)
	m.agent.Stderr = m.log
	m.must(m.agent.Start(), "start the agent")
}

// stop returns the agent's exit code.
func (m *machine) stop(s syscall.Signal) int {
	if m.agent == nil {
		return 0
	}
	m.agent.Process.Signal(s) //nolint:errcheck // it may have ended
	m.agent.Wait()            //nolint:errcheck // its code is returned
	code := m.agent.ProcessState.ExitCode()
	m.agent = nil
	return code
}

func (m *machine) call(args ...string) string {
	m.t.Helper()
	var stderr bytes.Buffer
	cmd := m.command(append(args, "--bpffs="+m.bpffs, "--run-dir="+m.run)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		m.t.Errorf("%v: %v: %s", args, err, stderr.String())
	}
	return string(out)
}

func (m *machine) list() []report.Row {
	m.t.Helper()
	var rows []report.Row
	m.must(json.Unmarshal([]byte(m.call("list", "-o", "json", "--interval=0")), &rows), "decode list")
	return rows
}

// want waits until the list shows exactly these, as "name limit device" or "name reason".
func (m *machine) want(lines ...string) {
	m.t.Helper()
	var got []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		got = nil
		for _, r := range m.list() {
			text := r.Name + " " + r.Limit
			for _, d := range r.Devices {
				text += " " + d.Name
			}
			if r.Reason != "" {
				text += " " + r.Reason
			}
			got = append(got, text)
		}
		if match(lines, got) {
			return
		}
		if m.agent != nil && m.agent.ProcessState != nil {
			break
		}
	}
	m.t.Errorf("list shows %q; want %q", got, lines)
}

// match compares prefixes: reasons are long.
func match(want, got []string) bool {
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			return false
		}
	}
	return true
}

func (m *machine) write(name, limit, rest string) {
	m.t.Helper()
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  annotations:\n    kubernetes.io/egress-bandwidth: %q\n%s", name, limit, rest)
	m.must(os.WriteFile(filepath.Join(m.manifests, name+".yaml"), []byte(text), 0o600), "write manifest")
}

func TestAgent(t *testing.T) {
	onMachine(t, func(m *machine) {
		m.pod("a", "veth-a", "10.1.0.2/24")
		m.write("by-ip", "10M", "status: {podIP: 10.1.0.2}\n")
		m.write("by-path", "5M", "    egress.kubepace.io/netns: "+filepath.Join(m.netnsd, "b")+"\n")
		m.write("host", "1G", "spec: {hostNetwork: true}\n")
		m.start()
		host := "host 1G the pod shares the node's network namespace"
		m.want("by-ip 10M veth-a", "by-path 5M network namespace", host)
		m.pod("b", "veth-b", "10.1.0.3/24") // the pod's network comes after the pod
		m.want("by-ip 10M veth-a", "by-path 5M veth-b", host)

		m.write("by-ip", "20M", "status: {podIP: 10.1.0.2}\n")
		m.want("by-ip 20M veth-a", "by-path 5M veth-b", host)
		m.write("by-ip", "20 megabits", "status: {podIP: 10.1.0.2}\n")
		m.want(`by-ip 20M veth-a metadata.annotations[kubernetes.io/egress-bandwidth]: "20 megabits" is not`, "by-path 5M veth-b", host)

		if status := m.call("status"); !strings.Contains(status, "Agent: running since") || !strings.Contains(status, "3 limited, 2 enforced") || !strings.HasPrefix(status, "Mode: policing (") {
			t.Errorf("status:\n%s", status)
		}

		// Without an agent everything stays, the last good limit and the reasons included.
		if code := m.stop(syscall.SIGTERM); code != 0 {
			t.Errorf("exit code %d; want 0", code)
		}
		m.want("by-ip 20M veth-a", "by-path 5M veth-b", host)
		m.must(os.Remove(filepath.Join(m.manifests, "by-path.yaml")), "remove manifest")
		m.start()
		m.want("by-ip 20M veth-a", host)
		m.stop(syscall.SIGKILL)
		m.want("by-ip 20M veth-a", host)
		if status := m.call("status"); !strings.Contains(status, "Agent: not running (limits stay in force)") {
			t.Errorf("status:\n%s", status)
		}

		m.call("cleanup")
		m.want()
		for _, path := range []string{m.bpffs, m.run} {
			if entries, _ := os.ReadDir(path); len(entries) != 0 {
				t.Errorf("%s still holds %v", path, entries)
			}
		}
	})
}

func TestOneAgentPerRunFolder(t *testing.T) {
	onMachine(t, func(m *machine) {
		m.start()
		for !strings.Contains(m.call("status"), "Agent: running") && !t.Failed() {
			time.Sleep(20 * time.Millisecond)
		}
		for _, args := range [][]string{{"run", "--pod-manifests=" + m.manifests}, {"cleanup"}} {
			out, err := m.command(append(args, "--bpffs="+m.bpffs, "--run-dir="+m.run)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "another agent holds the run folder") {
				t.Errorf("%v beside an agent: %v, %s", args, err, out)
			}
		}
	})
}

// TestAgentPaces is the whole chain where the kernel has fq: the exit device found, fq set, the mode decided, told to
// the kernel, and everything put back.
func TestAgentPaces(t *testing.T) {
	onMachine(t, func(m *machine) {
		var missing *qdisc.MissingError
		if err := qdisc.Probe(); errors.As(err, &missing) && os.Getenv("KUBEPACE_REQUIRE_FQ") != "true" {
			t.Skipf("kernel %v", err)
		}
		m.pod("a", "veth-a", "10.1.0.2/24")
		m.pod("outside", "up0", "192.0.2.1/24")
		up, err := netlink.LinkByName("up0")
		m.must(err, "find up0")
		m.must(netlink.LinkSetUp(up), "set up0 up")
		m.must(netlink.AddrAdd(up, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 2), Mask: net.CIDRMask(24, 32)}}), "add address")
		m.must(netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}), "add default route")
		before := m.qdiscs()
		m.write("web", "10M", "status: {podIP: 10.1.0.2}\n")
		m.start()
		m.want("web 10M veth-a")
		status := m.call("status")
		mode := "pacing"
		if strings.Contains(status, "departure times: no") {
			mode = "policing" // before Linux 5.18
		} else if !strings.HasPrefix(status, "Mode: pacing (EDT with fq) [") || !strings.Contains(status, "] [up0]\n") {
			t.Errorf("status:\n%s", status)
		}
		if rows := m.list(); len(rows) != 1 || rows[0].Mode != mode {
			t.Errorf("list %+v; want %s", rows, mode)
		}
		m.stop(syscall.SIGTERM)
		m.call("cleanup")
		if diff := cmp.Diff(before, m.qdiscs()); diff != "" {
			t.Errorf("qdiscs (-before +after):\n%s", diff)
		}
	})
}

// qdiscs is every qdisc of the node, as text.
func (m *machine) qdiscs() []string {
	m.t.Helper()
	list, err := netlink.QdiscList(nil)
	m.must(err, "list qdiscs")
	var text []string
	for _, q := range list {
		text = append(text, fmt.Sprintf("%d %s %x %x", q.Attrs().LinkIndex, q.Type(), q.Attrs().Handle, q.Attrs().Parent))
	}
	return text
}
