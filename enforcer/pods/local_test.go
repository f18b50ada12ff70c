// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/cni"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// sandbox is one CNI result of a test: it is written to a file and read by the real cache.
type sandbox struct {
	uid, name string // name "ns/name"
	netns     string
	rate      string // as JSON
	seconds   int    // since the first
}

func writeResult(t *testing.T, dir string, s sandbox) {
	t.Helper()
	namespace, name := filepath.Split(s.name)
	object := map[string]any{
		"kind": "cniCacheV1", "containerId": "box-" + s.netns, "ifName": "eth0", "netns": "/run/netns/" + s.netns,
		"cniArgs": [][2]string{{"K8S_POD_NAMESPACE", filepath.Clean(namespace)}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", s.uid}},
		"result":  map[string]any{"ips": []any{map[string]any{"address": "10.1.0.2/24"}}},
	}
	if s.rate != "" {
		object["capabilityArgs"] = map[string]any{"bandwidth": map[string]any{"egressRate": json.RawMessage(s.rate)}}
	}
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "net-"+s.netns+"-eth0")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(time.Duration(s.seconds)*time.Second - time.Hour)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestMergeLocal(t *testing.T) {
	api := func(uid, name, rate string, change ...func(p *Pod)) Pod {
		namespace, base := filepath.Split(name)
		p := Pod{Pod: datapath.Pod{Namespace: filepath.Clean(namespace), Name: base, UID: uid}, Phase: corev1.PodRunning, Origin: OriginAPI}
		if rate != "" {
			p.Rate = bandwidth.MustParse(rate)
		}
		for _, f := range change {
			f(&p)
		}
		return p
	}
	mirrorOf := func(hash string) func(p *Pod) { return func(p *Pod) { p.StaticUID = hash } }
	for name, test := range map[string]struct {
		source    []Pod
		sandboxes []sandbox
		dead      string
		want      []string // origin ns/name uid[object] rate netns...
	}{
		"a known pod gets its network, and keeps the source's limit": {
			[]Pod{api("a", "x/a", "5M")}, []sandbox{{"a", "x/a", "n1", "10000000", 0}}, "", []string{"api x/a a 5M n1"}},
		"a known pod without a limit has none, whatever it started with": {
			[]Pod{api("a", "x/a", "")}, []sandbox{{"a", "x/a", "n1", "10000000", 0}}, "", []string{"api x/a a 0 n1"}},
		"the newest network first": {
			[]Pod{api("a", "x/a", "5M")}, []sandbox{{"a", "x/a", "n1", "", 0}, {"a", "x/a", "n2", "", 1}}, "", []string{"api x/a a 5M n2 n1"}},
		"an unknown pod is held as it started": {
			[]Pod{api("b", "x/b", "5M")}, []sandbox{{"a", "x/a", "n1", "10000000", 0}}, "", []string{"cni x/a a 10M n1", "api x/b b 5M"}},
		"but not one without a limit": {nil, []sandbox{{"a", "x/a", "n1", "", 0}}, "", nil},
		"and not a dead one":          {nil, []sandbox{{"a", "x/a", "n1", "10000000", 0}}, "n1", nil},
		"of an unknown pod the newest that lives counts": {
			nil, []sandbox{{"a", "x/a", "n1", "1000000", 0}, {"a", "x/a", "n2", "2000000", 1}, {"a", "x/a", "n3", "3000000", 2}}, "n3",
			[]string{"cni x/a a 2M n2 n1"}},
		"an unknown pod with a senseless limit is told of": {
			nil, []sandbox{{"a", "x/a", "n1", "1", 0}}, "", []string{"cni x/a a error n1"}},
		"the same name, made anew: both": {
			[]Pod{api("new", "x/a", "5M")}, []sandbox{{"old", "x/a", "n1", "1000000", 0}, {"new", "x/a", "n2", "5000000", 1}}, "",
			[]string{"api x/a new 5M n2", "cni x/a old 1M n1"}},
		"a host-network pod has no network of its own": {
			[]Pod{api("a", "x/a", "5M", func(p *Pod) { p.HostNetwork = true })}, []sandbox{{"a", "x/a", "n1", "", 0}}, "", []string{"api x/a a 5M"}},
		"a result with another name is not believed": {
			[]Pod{api("a", "x/a", "5M")}, []sandbox{{"a", "x/other", "n1", "10000000", 0}}, "", []string{"api x/a a 5M"}},
		"a mirror is its static pod": {
			[]Pod{api("m", "x/web-node1", "5M", mirrorOf("hash"))}, []sandbox{{"hash", "x/web-node1", "n1", "5000000", 0}}, "",
			[]string{"api x/web-node1 hash[m] 5M n1"}},
		"a static pod before its mirror comes": {nil, []sandbox{{"hash", "x/web-node1", "n1", "5000000", 0}}, "", []string{"cni x/web-node1 hash 5M n1"}},
		"a mirror without a sandbox is itself": {[]Pod{api("m", "x/web-node1", "5M", mirrorOf("hash"))}, nil, "", []string{"api x/web-node1 m 5M"}},
		"a forged mirror gets no other pod's network": {
			[]Pod{api("m", "evil/m", "1k", mirrorOf("hash"))}, []sandbox{{"hash", "x/web-node1", "n1", "5000000", 0}}, "",
			[]string{"api evil/m m 1k", "cni x/web-node1 hash 5M n1"}},
		"nor a known pod's identity": {
			[]Pod{api("a", "x/a", "5M"), api("m", "evil/m", "1k", mirrorOf("a"))}, []sandbox{{"a", "x/a", "n1", "5000000", 0}}, "",
			[]string{"api evil/m m 1k", "api x/a a 5M n1"}},
		"two mirrors of one pod are not one": {
			[]Pod{api("m1", "x/w", "5M", mirrorOf("hash")), api("m2", "x/w", "5M", mirrorOf("hash"))}, []sandbox{{"hash", "x/w", "n1", "5000000", 0}}, "",
			[]string{"api x/w hash[m1] 5M n1", "api x/w m2 5M"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, s := range test.sandboxes {
				writeResult(t, dir, s)
			}
			view := cni.New(dir, "/run/netns", logr.Discard()).View()
			alive := func(netns string) bool { return netns != test.dead }
			for _, complete := range []bool{true, false} {
				got := mergeLocal(Snapshot{Pods: test.source, Complete: complete}, view, alive)
				if diff := cmp.Diff(test.want, describe(got.Pods)); diff != "" || got.Complete != complete {
					t.Errorf("complete %v (-want +got):\n%s", got.Complete, diff)
				}
			}
			for _, p := range mergeLocal(Snapshot{Pods: test.source}, view, nil).Pods {
				if p.Origin == OriginCNI {
					t.Errorf("%s was added to a source that is the whole word", p)
				}
			}
		})
	}
}

func describe(list []Pod) (lines []string) {
	for _, p := range list {
		line := fmt.Sprintf("%s %s %s", p.Origin, p.Pod, p.UID)
		if p.Object != "" {
			line += "[" + p.ObjectUID() + "]"
		}
		switch {
		case p.Err != nil:
			line += " error"
		case p.Rate == 0:
			line += " 0"
		default:
			line += " " + p.Rate.String()
		}
		for _, s := range p.Sandboxes {
			line += " " + s.Netns
		}
		lines = append(lines, line)
	}
	return lines
}

type fixed struct{ snapshot Snapshot }

func (f fixed) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (f fixed) Snapshot() Snapshot            { return f.snapshot }
func (f fixed) Changes() <-chan struct{}      { return nil }

// TestLocalTellsOfResults: a file that appears is news, and so is its end.
func TestLocalTellsOfResults(t *testing.T) {
	dir := t.TempDir()
	l := NewLocal(fixed{}, cni.New(dir, "/run/netns", logr.Discard()), func(string) bool { return true })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	writeResult(t, dir, sandbox{"a", "x/a", "n1", "10000000", 0})
	await(t, l, func(s Snapshot) bool { return len(s.Pods) == 1 && !s.Complete })
	if err := os.Remove(filepath.Join(dir, "net-n1-eth0")); err != nil {
		t.Fatal(err)
	}
	await(t, l, func(s Snapshot) bool { return len(s.Pods) == 0 })
}

func TestMirror(t *testing.T) {
	for name, test := range map[string]struct {
		annotations map[string]string
		origin      Origin
		want        string
	}{
		"mirror":          {map[string]string{corev1.MirrorPodAnnotationKey: "h", annotationStaticUID: "h1"}, OriginAPI, "h1"},
		"no mirror":       {map[string]string{annotationStaticUID: "h1"}, OriginAPI, ""},
		"senseless":       {map[string]string{corev1.MirrorPodAnnotationKey: "h", annotationStaticUID: "../x"}, OriginAPI, ""},
		"from the folder": {map[string]string{corev1.MirrorPodAnnotationKey: "h", annotationStaticUID: "h1"}, OriginManifests, ""},
	} {
		pod := object("a", "10M", "10.0.0.1")
		pod.Annotations = test.annotations
		small, err := strip(pod)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := fromObject(small.(*corev1.Pod), test.origin); err != nil || p.StaticUID != test.want {
			t.Errorf("%s: %q, %v; want %q", name, p.StaticUID, err, test.want)
		}
	}
}
