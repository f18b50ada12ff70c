// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// withoutBPF makes the program meet a kernel without bpf(2).
const withoutBPF = "KUBEPACE_TEST_WITHOUT_BPF"

// refuseBPF lets bpf(2) answer as in a kernel that was built without it, for all threads and for good.
func refuseBPF() {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS // of struct seccomp_data, the number of the call
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equal, K: unix.SYS_BPF, Jt: 0, Jf: 1},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		panic(errno)
	}
}

// health asks the agent, from this thread: it is in the agent's network namespace.
func (m *machine) health(path string) (int, string) {
	conn, err := net.DialTimeout("tcp", healthAddress, 5*time.Second)
	if err != nil {
		return 0, err.Error()
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
		return 0, err.Error()
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}

const healthAddress = "127.0.0.1:18083"

// TestKernelWithoutBPF: the agent stays, is live and not ready, and says why, of the node and of each pod.
func TestKernelWithoutBPF(t *testing.T) {
	onMachine(t, func(m *machine) {
		lo, err := netlink.LinkByName("lo")
		m.must(err, "find lo")
		m.must(netlink.LinkSetUp(lo), "set lo up")
		m.pod("a", "veth-a", "10.1.0.2/24")
		m.write("web", "10M", "status: {podIP: 10.1.0.2}\n")
		before := m.qdiscs()
		m.environment = append(m.environment, withoutBPF+"=1")
		m.start("--health-address=" + healthAddress)
		m.environment = nil
		m.want("web 10M no limit can be set on this node: open datapath: kernel ")
		var code int
		var text string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if code, text = m.health("/readyz"); strings.Contains(text, "lacks") {
				break
			}
		}
		if want := "lacks bpf(2) (CONFIG_BPF_SYSCALL)"; code != http.StatusServiceUnavailable || !strings.Contains(text, want) {
			t.Errorf("/readyz: %d %s; want 503, %q", code, text, want)
		}
		if code, text := m.health("/healthz"); code != http.StatusOK {
			t.Errorf("/healthz: %d %s; want 200: a restart would not help", code, text)
		}
		if status := m.call("status"); !strings.Contains(status, "lacks bpf(2)") {
			t.Errorf("status:\n%s", status)
		}
		if after := m.qdiscs(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("qdiscs %v, before %v; want them left alone where nothing can be enforced", after, before)
		}
		if code := m.stop(syscall.SIGTERM); code != 0 {
			t.Errorf("exit code %d; want 0", code)
		}
		m.start() // on a kernel that has it
		m.want("web 10M veth-a")
	})
}
