// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// listed is what `kubepace-enforcer list -o json` says of a pod.
type listed struct {
	Namespace string  `json:"namespace"`
	Pod       string  `json:"pod"`
	Limit     string  `json:"limit"`
	LimitBPS  int64   `json:"limit_bps"`
	Mode      string  `json:"mode"`
	HorizonMs float64 `json:"horizon_ms"`
	Enforced  bool    `json:"enforced"`
	Reason    string  `json:"reason"`
	Devices   []struct {
		Index int    `json:"ifindex"`
		Name  string `json:"name"`
	} `json:"devices"`
}

// list asks the enforcer of a node, as an operator does.
func (s *suite) list(ctx context.Context, node string) ([]listed, error) {
	out, err := s.enforcer(ctx, node, "list", "-o", "json", "--interval=100ms")
	if err != nil {
		return nil, err
	}
	return parseList(out)
}

func parseList(out string) ([]listed, error) {
	var got []listed
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return nil, fmt.Errorf("read list: %w: %s", err, out)
	}
	return got, nil
}

// enforcer runs kubepace-enforcer in the agent's pod of a node.
func (s *suite) enforcer(ctx context.Context, node string, args ...string) (string, error) {
	name, err := s.agent(ctx, node)
	if err != nil {
		return "", err
	}
	return s.Kubectl(ctx, append([]string{"-n", system, "exec", name, "--", "/kubepace-enforcer"}, args...)...)
}

// agent is the name of the agent's pod on a node.
func (s *suite) agent(ctx context.Context, node string) (string, error) {
	name, err := s.Kubectl(ctx, "-n", system, "get", "pods", "-l", "app.kubernetes.io/name=kubepace-enforcer",
		"--field-selector", "spec.nodeName="+node+",status.phase=Running", "-o", "name")
	if err != nil {
		return "", err
	}
	if name = strings.TrimSpace(name); name == "" || strings.Contains(name, "\n") {
		return "", fmt.Errorf("agents on %s: %q", node, name)
	}
	return name, nil
}

// find is what the pod's node says of the pod; nil where it says nothing.
func (s *suite) find(ctx context.Context, p pod) (*listed, error) {
	pods, err := s.list(ctx, p.node)
	if err != nil {
		return nil, err
	}
	for _, l := range pods {
		if l.Namespace == p.namespace && l.Pod == p.name {
			return &l, nil
		}
	}
	return nil, nil
}

// awaitEnforced waits until the pod's node says that it keeps the limit.
func (s *suite) awaitEnforced(ctx context.Context, t *testing.T, p pod, limit string) listed {
	t.Helper()
	var got listed
	err := cluster.Poll(ctx, 30*time.Second, func(ctx context.Context) error {
		l, err := s.find(ctx, p)
		if err != nil {
			return err
		}
		if l == nil || !l.Enforced || l.Limit != limit {
			return fmt.Errorf("%s does not keep %s for %s/%s: %+v", p.node, limit, p.namespace, p.name, l)
		}
		got = *l
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
	return got
}
