// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Cluster is what so many nodes' agents ask of one API server.
type Cluster struct {
	Nodes       int   `json:"nodes"`
	PodsPerNode int   `json:"pods_per_node"`
	Start       Phase `json:"start"` // from the first agent's start until every pod is held and its condition written
	Idle        Phase `json:"idle"`
	Roll        Phase `json:"rolling_change"` // limits of pods change, a fixed number each second
	Watches     int   `json:"watches"`        // open at rest
	RolledPods  int   `json:"rolled_pods"`
}

// Phase is what went over the agents' connections in a time. Requests are by verb and resource; a watch counts when it
// ends, as the API server counts it.
type Phase struct {
	Seconds  float64        `json:"seconds"`
	Up       int64          `json:"bytes_to_api_server"`
	Down     int64          `json:"bytes_from_api_server"`
	Requests map[string]int `json:"requests"`
}

// cluster fills an API server with nodes and pods, starts the agents of all of them, and measures.
func (r *Result) cluster(ctx context.Context) (err error) {
	p := r.Plan
	c := &Cluster{Nodes: p.Nodes, PodsPerNode: p.PodsPerNode}
	say("%d nodes with %d pods each ...", p.Nodes, p.PodsPerNode)
	plane, err := startPlane(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.stop()) }()
	began := time.Now()
	if err := plane.fill(ctx, p); err != nil {
		return err
	}
	say("  filled in %.0f s; starting the agents ...", time.Since(began).Seconds())
	var a *agents
	all := p.Nodes * p.PodsPerNode
	c.Start, err = plane.phase(ctx, func() *agents { return a }, func() error {
		if a, err = startAgents(ctx, plane.config, p.Nodes); err != nil {
			return err
		}
		return a.settled(ctx, plane, all)
	})
	if a != nil {
		defer func() { err = errors.Join(err, a.close()) }()
	}
	if err != nil {
		return err
	}
	say("  all held after %.0f s; at rest for %v ...", c.Start.Seconds, p.ClusterIdle)
	current := func() *agents { return a }
	if c.Idle, err = plane.phase(ctx, current, func() error { return sleep(ctx, p.ClusterIdle) }); err != nil {
		return err
	}
	if c.Watches, err = plane.watches(ctx); err != nil {
		return err
	}
	say("  %d pods change their limits, %d a second ...", p.Roll, p.RollPerSec)
	c.RolledPods = p.Roll
	if c.Roll, err = plane.phase(ctx, current, func() error { return plane.roll(ctx, p, a) }); err != nil {
		return err
	}
	r.Cluster = c
	return nil
}

// fill creates nodes and pods.
func (p *plane) fill(ctx context.Context, plan plan) error {
	return many(ctx, plan.Nodes, 16, func(i int) error {
		if err := p.createNode(ctx, clusterNode(i)); err != nil {
			return err
		}
		for k := range plan.PodsPerNode {
			bound, err := p.bindPod(ctx, clusterPod(i, k), clusterNode(i))
			if err != nil {
				return err
			}
			if err := p.report(ctx, bound, clusterAddr(i, k)); err != nil {
				return err
			}
		}
		return nil
	})
}

func clusterPod(i, k int) string { return fmt.Sprintf("%s-pod-%02d", clusterNode(i), k) }

func clusterAddr(i, k int) string { return fmt.Sprintf("10.%d.%d.%d", 1+i/250, i%250, 2+k) }

// settled waits until every pod is held, and until the API server has been told: no write for a moment.
func (a *agents) settled(ctx context.Context, p *plane, all int) error {
	for end := time.Now().Add(20 * time.Minute); time.Now().Before(end); {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
		if held, _ := a.enforced(); held != all {
			continue
		}
		requests, err := p.requests(ctx)
		if err != nil {
			return err
		}
		if requests["patch pods/status"] >= all {
			return nil
		}
	}
	held, synced := a.enforced()
	return fmt.Errorf("%d of %d pods are held, %d agents know all of theirs", held, all, synced)
}

// roll changes the limits of pods on all nodes, and waits until each agent has written what became of it.
func (p *plane) roll(ctx context.Context, plan plan, a *agents) error {
	before, err := p.requests(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	err = many(ctx, plan.Roll, 16, func(i int) error {
		if err := sleep(ctx, time.Until(began.Add(time.Duration(i)*time.Second/time.Duration(plan.RollPerSec)))); err != nil {
			return err
		}
		name := clusterPod(i%plan.Nodes, i/plan.Nodes%plan.PodsPerNode)
		patch := []byte(`{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":"20M"}}}`)
		_, err := p.client.CoreV1().Pods(benchNamespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil {
			return fmt.Errorf("change pod %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		now, err := p.requests(ctx)
		if err != nil {
			return err
		}
		if now["patch pods/status"]-before["patch pods/status"] >= plan.Roll {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	return errors.New("not every changed pod's condition was written")
}

// phase measures what goes over the agents' connections while do runs. The benchmark's own requests are not theirs:
// its patches of pods are counted as "patch pods", which no agent sends.
func (p *plane) phase(ctx context.Context, agents func() *agents, do func() error) (Phase, error) {
	before, err := p.requests(ctx)
	if err != nil {
		return Phase{}, err
	}
	var up, down int64
	if a := agents(); a != nil {
		up, down = a.up.Load(), a.down.Load()
	}
	began := time.Now()
	if err := do(); err != nil {
		return Phase{}, err
	}
	ph := Phase{Seconds: time.Since(began).Seconds(), Requests: map[string]int{}}
	a := agents()
	ph.Up, ph.Down = a.up.Load()-up, a.down.Load()-down
	after, err := p.requests(ctx)
	if err != nil {
		return Phase{}, err
	}
	for name, n := range after {
		if n -= before[name]; n > 0 && isAgents(name) {
			ph.Requests[name] = n
		}
	}
	return ph, nil
}

// isAgents tells the requests that agents send from those of the API server itself and of the benchmark.
func isAgents(name string) bool {
	switch name {
	case "list pods", "watch pods", "patch pods/status", "list nodes", "get nodes", "watch nodes", "patch nodes/status",
		"get leases", "create leases", "patch leases", "create events", "patch events":
		return true
	}
	return false
}

var (
	requestLine = regexp.MustCompile(`(?m)^apiserver_request_total\{([^}]*)\} (\S+)$`)
	watchLine   = regexp.MustCompile(`(?m)^apiserver_longrunning_requests\{([^}]*)\} (\S+)$`)
	labelPair   = regexp.MustCompile(`(\w+)="([^"]*)"`)
)

func (p *plane) metrics(ctx context.Context) (string, error) {
	text, err := p.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("read the API server's metrics: %w", err)
	}
	return string(text), nil
}

// requests are the API server's own counts, by verb and resource, as "patch pods/status".
func (p *plane) requests(ctx context.Context) (map[string]int, error) {
	text, err := p.metrics(ctx)
	if err != nil {
		return nil, err
	}
	return countRequests(text), nil
}

// countRequests leaves leases out that are not in kubepace's namespace only as far as the metrics tell: the API
// server's own lease is updated through no request.
func countRequests(text string) map[string]int {
	counts := map[string]int{}
	for _, match := range requestLine.FindAllStringSubmatch(text, -1) {
		l := labels(match[1])
		n, err := strconv.ParseFloat(match[2], 64)
		if err != nil {
			continue
		}
		verb := map[string]string{"APPLY": "patch", "PUT": "update", "POST": "create"}[l["verb"]]
		if verb == "" {
			verb = strings.ToLower(l["verb"])
		}
		name := verb + " " + l["resource"]
		if l["subresource"] != "" {
			name += "/" + l["subresource"]
		}
		counts[name] += int(n)
	}
	return counts
}

// watches are those on pods and nodes that are open.
func (p *plane) watches(ctx context.Context) (int, error) {
	text, err := p.metrics(ctx)
	if err != nil {
		return 0, err
	}
	open := 0
	for _, match := range watchLine.FindAllStringSubmatch(text, -1) {
		l := labels(match[1])
		if n, err := strconv.Atoi(match[2]); err == nil && l["verb"] == "WATCH" && (l["resource"] == "pods" || l["resource"] == "nodes") {
			open += n
		}
	}
	return open, nil
}

func labels(text string) map[string]string {
	out := map[string]string{}
	for _, pair := range labelPair.FindAllStringSubmatch(text, -1) {
		out[pair[1]] = pair[2]
	}
	return out
}
