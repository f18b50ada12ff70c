// SPDX-License-Identifier: Apache-2.0

package cnilab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kubepace/kubepace/tests/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a node with an API that it knows, and agents that end with the test.
type lab struct {
	*Node
	t          *testing.T
	api        *API
	kubeconfig string
	agent      *Agent
	pods       []*Pod
}

func newLab(t *testing.T) *lab {
	t.Helper()
	netlab.RequireRoot(t)
	o := Options{Dir: t.TempDir(), Plugins: os.Getenv("KUBEPACE_CNI_PLUGINS"), Enforcer: os.Getenv("KUBEPACE_ENFORCER")}
	for name, value := range map[string]string{"KUBEPACE_CNI_PLUGINS": o.Plugins, "KUBEPACE_ENFORCER": o.Enforcer} {
		if value == "" {
			netlab.Skip(t, "needs %s; `make test-node` sets it", name)
		}
	}
	l := &lab{t: t, kubeconfig: filepath.Join(o.Dir, "kubeconfig")}
	var err error
	l.Node, err = NewNode(o)
	l.must(err, "make node")
	t.Cleanup(l.end)
	l.api, err = StartAPI(l.Namespace)
	l.must(err, "start API")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {token: none}}]}`, l.api.URL)
	l.must(os.WriteFile(l.kubeconfig, []byte(text), 0o600), "write kubeconfig")
	return l
}

func (l *lab) end() {
	l.stop(syscall.SIGTERM)
	for _, p := range l.pods {
		if err := p.Close(); err != nil {
			l.t.Errorf("end pod: %v", err)
		}
	}
	if l.api != nil {
		_ = l.api.Stop()
	}
	if err := l.Node.Close(); err != nil {
		l.t.Errorf("end node: %v", err)
	}
}

func (l *lab) must(err error, what string) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

func (l *lab) start() {
	l.t.Helper()
	var err error
	l.agent, err = l.StartAgent("--node-name", NodeName, "--kubeconfig", l.kubeconfig)
	l.must(err, "start agent")
}

func (l *lab) stop(signal syscall.Signal) {
	if l.agent == nil {
		return
	}
	if err := l.agent.Stop(signal); err != nil {
		l.t.Errorf("agent ended with %v", err)
	}
	if l.t.Failed() {
		l.t.Logf("log of the agent:\n%s", l.agent.Log())
	}
	l.agent = nil
}

// pod makes a sandbox that the API knows.
func (l *lab) pod(name, limit string) *Pod {
	l.t.Helper()
	p := l.unknown(name, limit)
	l.api.Put(p.Object)
	return p
}

// unknown makes a sandbox that the API does not know.
func (l *lab) unknown(name, limit string) *Pod {
	l.t.Helper()
	p, err := l.NewPod(name, limit)
	l.must(err, "make pod")
	l.pods = append(l.pods, p)
	return p
}

func (l *lab) add(p *Pod, conflist, ifName string) {
	l.t.Helper()
	network, err := l.NewNetwork(conflist)
	l.must(err, "network")
	addrs, err := p.Add(l.t.Context(), network, ifName)
	l.must(err, "add")
	if len(addrs) == 0 {
		l.t.Fatalf("%s got no address", p.Object.Name)
	}
}

// held waits until the kernel holds exactly these, as "name limit devices".
func (l *lab) held(want ...string) {
	l.t.Helper()
	var got []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		states, err := l.States()
		l.must(err, "read state")
		got = nil
		for _, p := range l.pods {
			if s, ok := states[p.UID()]; ok {
				got = append(got, fmt.Sprintf("%s %s %d", p.Object.Name, s.Rate, len(s.Devices)))
				delete(states, p.UID())
			}
		}
		for uid := range states {
			got = append(got, uid)
		}
		if strings.Join(got, ", ") == strings.Join(want, ", ") {
			return
		}
	}
	l.t.Fatalf("the kernel holds %q; want %q", got, want)
}

func (l *lab) context() context.Context {
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Minute)
	l.t.Cleanup(cancel)
	return ctx
}
