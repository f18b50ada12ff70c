// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// node is a topology with the real agent on it, fed from a folder of manifests.
type node struct {
	*netlab.Topology
	t         *testing.T
	binary    string
	manifests string
	flags     []string // of every command; the first is --bpffs
	// agentFlags are for the agent alone.
	agentFlags []string
	agent      *exec.Cmd
	log        *record
}

// record keeps what the agent logs, and shows it in the test's own.
type record struct {
	mu   sync.Mutex
	text []byte
	to   io.Writer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.text = append(r.text, p...)
	r.mu.Unlock()
	return r.to.Write(p)
}

// Len is where From starts to see what comes next.
func (r *record) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.text)
}

func (r *record) From(n int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.text[n:])
}

func newNode(t *testing.T) *node {
	t.Helper()
	binary := os.Getenv("KUBEPACE_ENFORCER")
	if binary == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("KUBEPACE_ENFORCER must name the enforcer's binary (make test sets it)")
		}
		t.Skip("needs KUBEPACE_ENFORCER, the enforcer's binary; `make test-datapath` sets it")
	}
	dir := t.TempDir()
	netnsDir := filepath.Join(dir, "netns")
	if err := os.Mkdir(netnsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	n := &node{
		Topology: netlab.New(t, netlab.Options{Pods: 2, NetnsDir: netnsDir}), t: t, binary: binary,
		manifests: filepath.Join(dir, "pods"), log: &record{to: t.Output()},
	}
	if err := os.Mkdir(n.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	n.flags = []string{"--bpffs", mountBPFFS(t), "--run-dir", filepath.Join(dir, "run")}
	n.start(netnsDir)
	t.Cleanup(func() { n.kill(syscall.SIGTERM) })
	return n
}

// start runs the agent in the node's namespace.
func (n *node) start(netnsDir string) {
	n.t.Helper()
	args := append([]string{
		"run", "--pod-manifests", n.manifests, "--netns-dir", netnsDir, "--exit-devices", netlab.Uplink,
	}, n.flags...)
	n.agent = exec.Command(n.binary, append(args, n.agentFlags...)...)
	n.agent.Stderr = n.log
	if err := n.Node.Do(n.agent.Start); err != nil {
		n.t.Fatalf("start the agent: %v", err)
	}
}

func (n *node) kill(signal syscall.Signal) {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Signal(signal)
	_ = n.agent.Wait()
	n.agent = nil
}

// write puts a pod's manifest into the folder, as an administrator would: whole or not at all.
func (n *node) write(pod int, limit string) {
	n.t.Helper()
	p := n.Pods[pod]
	text := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: lab
  annotations: {%s: %q}
spec: {containers: [{name: c, image: none}]}
status: {phase: Running, podIP: %q}
`, p.Name, bandwidth.AnnotationEgress, limit, p.Addr)
	file := filepath.Join(n.manifests, p.Name+".yaml")
	if err := os.WriteFile(file+".tmp", []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		n.t.Fatal(err)
	}
}

// entry is what `list -o json` says of a pod; only what the tests ask for.
type entry struct {
	Pod   string `json:"pod"`
	Limit string `json:"limit"`
	Mode  string `json:"mode"`

	Devices []struct{ Hook, Behind string } `json:"devices"`
}

// list asks as an operator would.
func (n *node) list() []entry {
	n.t.Helper()
	list, err := n.tryList()
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// tryList fails where what is in the kernel is another version's.
func (n *node) tryList() (list []entry, err error) {
	var out []byte
	err = n.Node.Do(func() (err error) {
		cmd := exec.Command(n.binary, append([]string{"list", "-o", "json", "--interval", "0"}, n.flags...)...)
		cmd.Stderr = n.t.Output()
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("list printed %s: %w", out, err)
	}
	return list, nil
}

// await waits until `list` shows exactly these limits, as NAME=LIMIT.
func (n *node) await(want ...string) {
	n.t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		got = nil
		for _, e := range n.list() {
			got = append(got, e.Pod+"="+e.Limit)
		}
		if strings.Join(got, " ") == strings.Join(want, " ") {
			return
		}
	}
	n.t.Fatalf("list shows %v, want %v", got, want)
}

// TestAgent: limits come, change and go with the manifests; a bad one leaves the last good state in force.
func TestAgent(t *testing.T) {
	beside(t)
	n := newNode(t)
	n.write(0, "10M")
	n.await("pod0=10M")
	n.write(1, "1.5G")
	n.await("pod0=10M", "pod1=1500M")
	n.write(0, "20M")
	n.await("pod0=20M", "pod1=1500M")
	n.write(0, "10 megabits")
	if err := os.Remove(filepath.Join(n.manifests, "pod1.yaml")); err != nil {
		t.Fatal(err)
	}
	n.await("pod0=20M")
	if want := os.Getenv("KUBEPACE_EXPECT_MODE"); want != "" && n.list()[0].Mode != want {
		t.Errorf("mode %s, want %s", n.list()[0].Mode, want)
	}
}

// TestSIGKILL during a transfer leaves the limit in force; starting the agent again adopts it, and the transfer
// never exceeds the limit.
func TestSIGKILL(t *testing.T) {
	const rate, d = 10 * bandwidth.Megabit, 6 * time.Second
	beside(t)
	n := newNode(t)
	n.write(0, rate.String())
	n.await("pod0=10M")
	l := &lab{Topology: n.Topology, t: t}
	if n.list()[0].Mode == "pacing" {
		l.mode = 1
	}
	var counted []entry
	c := l.meter(func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := traffic.TCP(context.Background(), traffic.TCPOptions{
				From: n.Pods[0], To: n.Host, Addr: n.Remote, Congestion: "cubic", Duration: d,
			})
			if err != nil {
				t.Errorf("transfer: %v", err)
			}
		})
		time.Sleep(d / 3)
		n.kill(syscall.SIGKILL)
		counted = n.list() // the kernel answers, not the agent
		time.Sleep(d / 3)
		n.start(filepath.Dir(n.Pods[0].NetnsPath))
		n.await("pod0=10M")
		wg.Wait()
	}).From(n.Pods[0].Addr)
	if len(counted) != 1 || counted[0].Limit != "10M" {
		t.Errorf("list without agent: %+v", counted)
	}
	checkBound(t, c, rate, l.allowance(rate, 1))
	for i, name := range []string{"with the agent", "after SIGKILL", "adopted"} {
		from := c.First() + d/3*time.Duration(i)
		used := c.Rate(from, from+d/3) / float64(rate)
		t.Logf("%s: %.1f %% of the limit", name, 100*used)
		if used < 0.3 {
			t.Errorf("%s: the transfer stalled", name)
		}
	}
}
