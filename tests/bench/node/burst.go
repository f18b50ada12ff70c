// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"time"

	"github.com/kubepace/kubepace/tests/cnilab"
)

// Burst is many pods that start at once, on a node that is full of others.
type Burst struct {
	cnilab.Burst

	Standing int  `json:"standing_pods"`
	Grouped  bool `json:"in_control_groups"` // processors are shared as on a kubelet's node
}

// burstNetwork is on the world's bridge, with addresses that no other pod has.
const burstNetwork = `{"cniVersion":"1.0.0","name":"burst","plugins":[{"type":"bridge","bridge":"cni0","isDefaultGateway":true,
"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"10.244.0.0/16","rangeStart":"10.244.200.0","rangeEnd":"10.244.250.0"}]]}}]}`

// burst starts pods at once by real CNI plugins. As on a node, the API server and the agent know of them before.
func (r *Result) burst(ctx context.Context, a *agent, p *plane, standing int) (err error) {
	plugins := os.Getenv("KUBEPACE_CNI_PLUGINS")
	if plugins == "" {
		return errors.New("KUBEPACE_CNI_PLUGINS is not set: see tests/bench/cni/build.sh")
	}
	node := cnilab.NodeOn(a.w.Namespace, cnilab.Options{Dir: a.w.dir, Plugins: plugins})
	network, err := node.NewNetwork(burstNetwork)
	if err != nil {
		return err
	}
	pods := make([]*cnilab.Pod, r.Plan.Burst)
	defer func() {
		err = errors.Join(err, many(context.WithoutCancel(ctx), len(pods), 8, func(i int) error {
			if pods[i] == nil {
				return nil
			}
			return errors.Join(pods[i].Close(), p.deletePod(context.WithoutCancel(ctx), podName(burstFirst+i)))
		}))
	}()
	err = many(ctx, len(pods), 8, func(i int) (err error) {
		if pods[i], err = node.NewPod(podName(burstFirst+i), ""); err != nil {
			return err
		}
		bound, err := p.bindPod(ctx, podName(burstFirst+i), nodeName)
		if err == nil {
			pods[i].Object = bound
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said := &enforcedLog{file: a.log(), pods: map[string]cnilab.Enforced{}}
	b := &Burst{Standing: standing}
	b.Grouped, err = asOnNode(a.PID(), func() (err error) {
		b.Burst, err = cnilab.RunBurst(ctx, said.find, network, pods, len(pods))
		return err
	})
	if err != nil {
		return err
	}
	r.Burst = b
	say("  %d pods at once: CNI ADD to enforced p50 %.0f ms, p99 %.0f ms; %d before their container's first packet", b.Pods, b.Lag.P50, b.Lag.P99, b.InForce)
	return nil
}

// burstFirst is the number of the first pod of a burst.
const burstFirst = 3000

// enforcedLog is what the agent's log says of limits that are in force, by the pods' UIDs.
type enforcedLog struct {
	file string
	read int64
	pods map[string]cnilab.Enforced
}

// find reads what was added to the log since.
func (l *enforcedLog) find(uid string) (cnilab.Enforced, bool) {
	if e, ok := l.pods[uid]; ok {
		return e, true
	}
	text, err := os.ReadFile(l.file)
	if err != nil || int64(len(text)) < l.read {
		return cnilab.Enforced{}, false
	}
	text = text[l.read:]
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	l.read += int64(len(whole))
	for line := range bytes.Lines(whole) {
		if e, ok := cnilab.ParseEnforced(line); ok {
			l.pods[e.UID] = e
		}
	}
	e, ok := l.pods[uid]
	return e, ok
}
