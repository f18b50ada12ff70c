// SPDX-License-Identifier: Apache-2.0

package condition

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/pods"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster plays the API server and the source.
type cluster struct {
	mu     sync.Mutex
	pods   map[string]pods.Pod
	writes []string
	err    error
}

func (c *cluster) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (c *cluster) Changes() <-chan struct{}      { return nil }
func (c *cluster) Snapshot() pods.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := pods.Snapshot{Complete: true}
	for _, p := range c.pods {
		s.Pods = append(s.Pods, p)
	}
	return s
}

func (c *cluster) patch(_ context.Context, pod datapath.Pod, to *corev1.PodCondition) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		c.writes = append(c.writes, "refused")
		return c.err
	}
	p, ok := c.pods[pod.UID]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, pod.Name)
	}
	p.Condition = to
	c.pods[pod.UID] = p
	text := pod.Name + " none"
	if to != nil {
		text = pod.Name + " " + to.Reason
	}
	c.writes = append(c.writes, text)
	return nil
}

func (c *cluster) did() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.writes)
}

func (c *cluster) add(name string, limit bandwidth.Rate, have *corev1.PodCondition) pods.Pod {
	p := pods.Pod{Pod: datapath.Pod{Namespace: "default", Name: name, UID: "uid-" + name}, Rate: limit, Condition: have}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[p.UID] = p
	return p
}

func verdict(code enforcer.Code) enforcer.Verdict {
	return enforcer.Verdict{Limit: bandwidth.Megabit, Code: code, Enforced: code == enforcer.CodePacing}
}

// start runs a writer until the test ends.
func start(t *testing.T, c *cluster) *Writer {
	t.Helper()
	w := New(c.patch, c, logr.Discard())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

func want(t *testing.T, c *cluster, writes ...string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if slices.Equal(c.did(), writes) {
			return
		}
	}
	t.Fatalf("writes %q; want %q", c.did(), writes)
}

func TestWriter(t *testing.T) {
	c := &cluster{pods: map[string]pods.Pod{}}
	left := Of(verdict(enforcer.CodePacing))
	c.add("free", 0, &left) // an earlier agent's, on a pod that has no limit any more
	w := start(t, c)
	want(t, c, "free none")

	a := c.add("a", bandwidth.Megabit, nil)
	w.Changed(a, verdict(enforcer.CodeDeviceNotFound))
	want(t, c, "free none", "a DeviceNotFound")
	w.Changed(a, verdict(enforcer.CodeDeviceNotFound)) // nothing new
	w.Changed(a, verdict(enforcer.CodePacing))
	want(t, c, "free none", "a DeviceNotFound", "a Pacing")
	w.Released(a)
	want(t, c, "free none", "a DeviceNotFound", "a Pacing", "a none")

	// What is there already, from an earlier agent, is not written again.
	w.Changed(c.add("b", bandwidth.Megabit, &left), verdict(enforcer.CodePacing))
	w.Changed(a, verdict(enforcer.CodePacing))
	want(t, c, "free none", "a DeviceNotFound", "a Pacing", "a none", "a Pacing")
}

func TestWriterTriesAgain(t *testing.T) {
	c := &cluster{pods: map[string]pods.Pod{}, err: errors.New("connection refused")}
	w := start(t, c)
	a := c.add("a", bandwidth.Megabit, nil)
	w.Changed(a, verdict(enforcer.CodePacing))
	for len(c.did()) < 2 && !t.Failed() {
		time.Sleep(10 * time.Millisecond)
	}
	c.mu.Lock()
	c.err, c.writes = nil, nil
	c.mu.Unlock()
	want(t, c, "a Pacing")
	// A pod that is gone is forgotten, not tried for ever.
	w.Changed(pods.Pod{Pod: datapath.Pod{Name: "gone", UID: "uid-gone"}}, verdict(enforcer.CodePacing))
	w.Changed(a, verdict(enforcer.CodeFailed))
	want(t, c, "a Pacing", "a Failed")
	w.compare()
	if w.mu.Lock(); len(w.pods) != 1 {
		t.Errorf("remembers %d pods; want 1", len(w.pods))
	}
	w.mu.Unlock()
}

func TestCompareFindsWhatOthersChanged(t *testing.T) {
	c := &cluster{pods: map[string]pods.Pod{}}
	w := start(t, c)
	a := c.add("a", bandwidth.Megabit, nil)
	w.Changed(a, verdict(enforcer.CodePacing))
	want(t, c, "a Pacing")
	c.add("a", bandwidth.Megabit, nil) // somebody took it away
	w.compare()
	want(t, c, "a Pacing", "a Pacing")
}

func TestStamped(t *testing.T) {
	before := Of(verdict(enforcer.CodePacing))
	before.LastTransitionTime = metav1.Unix(1000, 0)
	still, changed := Of(verdict(enforcer.CodePacing)), Of(verdict(enforcer.CodeFailed))
	still.Message = "another limit"
	if got := stamped(&before, &still).LastTransitionTime; !got.Equal(&before.LastTransitionTime) {
		t.Errorf("transition at %v; want %v: the status is the same", got, before.LastTransitionTime)
	}
	if got := stamped(&before, &changed).LastTransitionTime; got.Equal(&before.LastTransitionTime) {
		t.Error("the status changed and its time did not")
	}
}
