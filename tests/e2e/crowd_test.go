// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubepace/kubepace/tests/cnilab"
	"github.com/kubepace/kubepace/tests/e2e/cluster"
)

// crowdSize is as many pods as a node's kubelet takes (110) beside what runs there.
const crowdSize = 100

// arrival is when one pod of the crowd got what.
type arrival struct {
	name                     string
	added, enforced, started time.Time // CNI ADD was over, the limit in force, the first container's process there
}

// crowd creates a hundred pods at once on one node: each must have its limit before its first container starts.
func (s *suite) crowd(ctx context.Context, t *testing.T) {
	before, err := s.networks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.namespace(ctx, t, "crowd", nil)
	t.Cleanup(func() { s.disperse(ctx, t, before) })
	since := time.Now()
	var create errgroup.Group
	create.SetLimit(8)
	for i := range crowdSize {
		spec := podSpec{namespace: "crowd", name: fmt.Sprintf("pod-%02d", i), node: "node2", egress: "10M"}
		create.Go(func() error {
			_, err := s.Client.CoreV1().Pods(spec.namespace).Create(ctx, spec.object(), metav1.CreateOptions{})
			return err
		})
	}
	if err := create.Wait(); err != nil {
		t.Fatal(err)
	}
	pods := map[string]*arrival{} // by UID
	err = cluster.Poll(ctx, 5*time.Minute, func(ctx context.Context) error {
		list, err := s.Client.CoreV1().Pods("crowd").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			p := &list.Items[i]
			pods[string(p.UID)] = &arrival{name: p.Name}
			if podReady(p) {
				ready++
			}
		}
		if ready != crowdSize {
			return fmt.Errorf("%d of %d pods are ready", ready, crowdSize)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.diagnose(ctx))
	}
	took := time.Since(since)
	s.noteResults(ctx, t, pods)
	s.noteLimits(ctx, t, pods, since)
	noteProcesses(t, pods)
	var lag, ahead []time.Duration // from CNI ADD to the limit, from there to the container
	early := 0
	for _, p := range pods {
		if p.added.IsZero() || p.enforced.IsZero() || p.started.IsZero() {
			t.Errorf("%s: CNI ADD %v, limit %v, container %v; want all three", p.name, p.added, p.enforced, p.started)
			continue
		}
		if p.enforced.After(p.started) {
			t.Errorf("%s: its limit came %v after its container", p.name, p.enforced.Sub(p.started))
		}
		if p.enforced.Before(p.added) {
			early++
		}
		lag, ahead = append(lag, p.enforced.Sub(p.added)), append(ahead, p.started.Sub(p.enforced))
	}
	if t.Failed() {
		return
	}
	slices.Sort(lag)
	slices.Sort(ahead)
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	s.results.add(row{step: "crowd", what: fmt.Sprintf("%d pods at once: each limited before its first container", crowdSize), asked: "10M", limit: "10M",
		note: fmt.Sprintf("%d before CNI ADD was over, from its end to the limit p50 %d, worst %d ms; limit to container p50 %d, least %d ms; all ready in %.0f s",
			early, ms(lag[len(lag)/2]), ms(lag[len(lag)-1]), ms(ahead[len(ahead)/2]), ms(ahead[0]), took.Seconds())})
}

// disperse deletes the crowd, and waits for the end of all of its networks: what is measured next is not to run beside that.
func (s *suite) disperse(ctx context.Context, t *testing.T, before int) {
	t.Helper()
	s.deleteNamespace(ctx, t, "crowd")
	err := cluster.Poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		now, err := s.networks(ctx)
		if err == nil && now > before {
			err = fmt.Errorf("node2 still has %d networks of pods; want %d", now, before)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// networks counts the CNI results on node2, each of which goes with its CNI DEL.
func (s *suite) networks(ctx context.Context) (int, error) {
	out, err := s.Nodes[1].Output(ctx, "sh", "-c", "ls /var/lib/cni/results | wc -l")
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// noteResults takes the end of CNI ADD from when its result was written.
func (s *suite) noteResults(ctx context.Context, t *testing.T, pods map[string]*arrival) {
	t.Helper()
	out, err := s.Nodes[1].Output(ctx, "sh", "-c", `cd /var/lib/cni/results && for f in *-eth0; do stat -c %.9Y "$f" && tr -d '\n' <"$f" && echo; done`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(out, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		var result struct {
			Args [][2]string `json:"cniArgs"`
		}
		if err := json.Unmarshal([]byte(lines[i+1]), &result); err != nil {
			t.Fatalf("read CNI result: %v: %s", err, lines[i+1])
		}
		// Seconds with nine digits after the point are nanoseconds without it.
		ns, err := strconv.ParseInt(strings.Replace(lines[i], ".", "", 1), 10, 64)
		if err != nil {
			t.Fatalf("read time of CNI result: %v", err)
		}
		at := time.Unix(0, ns)
		for _, arg := range result.Args {
			if p := pods[arg[1]]; arg[0] == "K8S_POD_UID" && p != nil {
				p.added = at
			}
		}
	}
}

// noteLimits takes from the agent's log when each limit came into force first.
func (s *suite) noteLimits(ctx context.Context, t *testing.T, pods map[string]*arrival, since time.Time) {
	t.Helper()
	agent, err := s.agent(ctx, "node2")
	if err != nil {
		t.Fatal(err)
	}
	log := s.kubectl(ctx, t, "-n", system, "logs", agent, "--since-time="+since.UTC().Format(time.RFC3339))
	for line := range strings.Lines(log) {
		if e, ok := cnilab.ParseEnforced([]byte(line)); ok {
			if p := pods[e.UID]; p != nil && p.enforced.IsZero() {
				p.enforced = e.At
			}
		}
	}
}

// noteProcesses takes from the kernel when the process of each container began: runc's, which becomes the container's later.
func noteProcesses(t *testing.T, pods map[string]*arrival) {
	t.Helper()
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		t.Fatal(err)
	}
	booted := time.Now().Add(-time.Duration(boot.Nano()))
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range found {
		stat, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(stat, []byte("(iperf3)")) {
			continue // gone, or another's
		}
		groups, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if err != nil {
			continue
		}
		const startTime = 22 - 3 // by proc(5), counted from what follows the name
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		ticks, err := strconv.ParseInt(fields[startTime], 10, 64)
		if err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		const tick = 10 * time.Millisecond // USER_HZ is 100
		for uid, p := range pods {
			if bytes.Contains(groups, []byte("pod"+uid)) {
				p.started = booted.Add(time.Duration(ticks) * tick)
			}
		}
	}
}
