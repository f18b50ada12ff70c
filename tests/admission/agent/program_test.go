// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kubepace/kubepace/tests/netlab"
)

// TestProgram: the program itself, on a node of network namespaces with a real kernel, with its pod's own token.
func TestProgram(t *testing.T) {
	netlab.RequireRoot(t)
	c := need(t)
	const n = "program-1"
	dir := t.TempDir()
	topology := netlab.New(t, netlab.Options{Pods: 1, NetnsDir: filepath.Join(dir, "netns")})
	config := c.node(t, n)
	forward(t, topology.Node, config.Host)
	p := newProgram(t, topology.Node, dir)
	ns := c.namespace(t)
	web, host := c.pod(ns, "web", n, "10M"), c.pod(ns, "host", n, "10M")
	host.Spec.HostNetwork = true
	for _, pod := range []*corev1.Pod{web, host} {
		c.create(t, pod)
	}
	c.run(t, web, topology.Pods[0].Addr.String())
	p.start("--kubeconfig="+kubeconfig(t, dir, config), "--node-name="+n, "--advertise=10G", "--exit-devices="+netlab.Uplink, "--netns-dir="+filepath.Join(dir, "netns"), "--cni-cache-dir=")
	eventually(t, "the condition of web", func() bool {
		got := c.condition(t, web)
		return got != nil && got.Status == corev1.ConditionTrue && strings.HasPrefix(got.Message, "10M on "+topology.Pods[0].HostDevice+" by p")
	})
	c.waitCondition(t, host, corev1.ConditionFalse, "HostNetwork", "shares the node's network namespace")
	c.waitAdvertised(t, n, "10G")
	c.limit(t, web, `null`)
	eventually(t, "the condition to go", func() bool { return c.condition(t, web) == nil })
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d; want 0", code)
	}
	if got := c.advertised(t, n); got != "10G" {
		t.Errorf("node advertises %q; want 10G, for the next agent", got)
	}
}

// forward lets what is in a namespace reach the API server, which listens on another one's loopback.
func forward(t *testing.T, in *netlab.Namespace, server string) {
	t.Helper()
	u, err := url.Parse(server)
	must(t, err)
	var listener net.Listener
	must(t, in.Do(func() (err error) {
		listener, err = net.Listen("tcp", u.Host)
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := net.Dial("tcp", u.Host)
				if err != nil {
					return
				}
				defer far.Close()
				go func() {
					_, _ = io.Copy(far, near)
					far.Close()
				}()
				_, _ = io.Copy(near, far)
			}()
		}
	}()
}

// kubeconfig writes a client's configuration into a file.
func kubeconfig(t *testing.T, dir string, config *rest.Config) string {
	t.Helper()
	out := clientcmdapi.NewConfig()
	out.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	out.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	out.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	out.CurrentContext = "x"
	path := filepath.Join(dir, "kubeconfig")
	must(t, clientcmd.WriteToFile(*out, path))
	return path
}

// program is kubepace-enforcer with folders of its own.
type program struct {
	t      *testing.T
	in     *netlab.Namespace
	binary string
	flags  []string // of every command
	cmd    *exec.Cmd
	log    bytes.Buffer
}

func newProgram(t *testing.T, in *netlab.Namespace, dir string) *program {
	t.Helper()
	bpffs := filepath.Join(dir, "bpf")
	must(t, os.Mkdir(bpffs, 0o700))
	must(t, unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { must(t, unix.Unmount(bpffs, unix.MNT_DETACH)) })
	p := &program{t: t, in: in, binary: filepath.Join(dir, "kubepace-enforcer"), flags: []string{"--bpffs=" + filepath.Join(bpffs, "kubepace"), "--run-dir=" + filepath.Join(dir, "run")}}
	out, err := exec.Command("go", "build", "-o", p.binary, "github.com/kubepace/kubepace/cmd/kubepace-enforcer").CombinedOutput()
	if err != nil {
		t.Fatalf("build the enforcer: %v\n%s", err, out)
	}
	return p
}

// start runs the agent until the test ends at the latest; then everything that it left is removed.
func (p *program) start(flags ...string) {
	p.t.Helper()
	p.cmd = exec.Command(p.binary, append(append([]string{"run"}, p.flags...), flags...)...)
	p.cmd.Stderr = &p.log
	must(p.t, p.in.Do(p.cmd.Start))
	p.t.Cleanup(func() {
		p.stop()
		if p.t.Failed() {
			p.t.Logf("log of the agent:\n%s", p.log.String())
		}
		cleanup := exec.Command(p.binary, append([]string{"cleanup"}, p.flags...)...)
		must(p.t, p.in.Do(cleanup.Run))
	})
}

// stop ends the agent in order, and returns its exit code.
func (p *program) stop() int {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("stop the agent: %v", err)
	}
	_ = p.cmd.Wait() // its code is returned
	return p.cmd.ProcessState.ExitCode()
}
