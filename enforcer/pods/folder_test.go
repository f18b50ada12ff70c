// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const web = `apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 11111111-2222-3333-4444-555555555555
  annotations:
    kubernetes.io/egress-bandwidth: 10M
    egress.kubepace.io/netns: /var/run/netns/web
status:
  phase: Running
  podIP: 10.0.0.5
  podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}]
`

// manifestOf is a pod with one limit.
func manifestOf(name, limit string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, annotations: {kubernetes.io/egress-bandwidth: %q}}\n", name, limit)
}

func TestDecodeManifest(t *testing.T) {
	list, err := decodeManifest([]byte("# two pods\n---\n" + web + "---\n---\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"json"},"spec":{"hostNetwork":true,"unknown":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Fatalf("%d pods; want 2", len(list))
	}
	p := list[0]
	if p.String() != "shop/web" || p.UID != "11111111-2222-3333-4444-555555555555" || p.Rate != 10*bandwidth.Megabit ||
		p.Netns != "/var/run/netns/web" || p.Phase != corev1.PodRunning || p.Origin != OriginManifests || !p.Limited() {
		t.Errorf("pod %+v", p)
	}
	if diff := cmp.Diff("[10.0.0.5 fd00::5]", fmt.Sprint(p.IPs)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if p := list[1]; p.String() != "default/json" || !p.HostNetwork || p.Limited() || p.UID != string(deriveUID("default", "json")) {
		t.Errorf("pod %+v", p)
	}
	// The text is what is stored in the kernel: it may not change between versions.
	if got := deriveUID("a", "b"); got != "2295e0fa-9abe-510a-8f60-90a1a3251f42" || got == deriveUID("a", "c") {
		t.Errorf("derived UID %q: not stable and distinct", got)
	}
}

func TestDecodeManifestRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"empty":       {"", "holds no Pod"},
		"comments":    {"# nothing\n---\n", "holds no Pod"},
		"not YAML":    {"a: b: c", "yaml"},
		"kind":        {"apiVersion: v1\nkind: Service\nmetadata: {name: x}", `kind: "Service"`},
		"version":     {"apiVersion: v2\nkind: Pod\nmetadata: {name: x}", `apiVersion "v2"`},
		"no name":     {"apiVersion: v1\nkind: Pod\nmetadata: {namespace: x}", "metadata.name: is missing"},
		"name":        {"apiVersion: v1\nkind: Pod\nmetadata: {name: \"x\\e[31m\"}", "metadata.name"},
		"namespace":   {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: ../y}", "metadata.namespace"},
		"uid":         {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, uid: ../../y}", "metadata.uid"},
		"podIP":       {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nstatus: {podIP: 10.0.0}", `status.podIP: "10.0.0" is not an IP address`},
		"podIPs":      {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: x}]}", "status.podIPs[1].ip"},
		"type":        {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: [x]}", "metadata.annotations"},
		"netns":       {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: {egress.kubepace.io/netns: ../x}}", "metadata.annotations[egress.kubepace.io/netns]"},
		"in document": {web + "---\n" + "kind: Pod", "document 2: kind:"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := decodeManifest([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("decode = %v, %v; want an error with %q", list, err, test.want)
			}
		})
	}
}

func TestBadLimitIsThePodsFault(t *testing.T) {
	list, err := decodeManifest([]byte(manifestOf("bad", "10 megabits") + "---\n" + manifestOf("good", "5M")))
	if err != nil || len(list) != 2 {
		t.Fatalf("decode = %v, %v; want two pods", list, err)
	}
	want := `metadata.annotations[kubernetes.io/egress-bandwidth]: "10 megabits" is not a Kubernetes quantity`
	if p := list[0]; p.Err == nil || !strings.HasPrefix(p.Err.Error(), want) || !errors.Is(p.Err, bandwidth.ErrSyntax) || !p.Limited() || p.Rate != 0 {
		t.Errorf("pod %+v; want Err %q", p, want)
	}
	if p := list[1]; p.Err != nil || p.Rate != 5*bandwidth.Megabit {
		t.Errorf("pod %+v; want 5M", p)
	}
}

func TestFinishedPodsAreNotLimited(t *testing.T) {
	for _, phase := range []string{"Succeeded", "Failed"} {
		list, err := decodeManifest([]byte(manifestOf("x", "5M") + "status: {phase: " + phase + "}\n"))
		if err != nil || list[0].Limited() {
			t.Errorf("%s: %v, %v; want no limit", phase, list, err)
		}
	}
}

// dir is a folder under watch.
type dir struct {
	t    *testing.T
	path string
	*Folder
}

func watchDir(t *testing.T, files map[string]string) *dir {
	t.Helper()
	d := &dir{t: t, path: t.TempDir()}
	for name, text := range files {
		d.write(name, text)
	}
	f, err := NewFolder(d.path, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	d.Folder = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *dir) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// want waits until the snapshot shows exactly these pods with their limits, and as many problems.
func (d *dir) want(problems int, limits ...string) Snapshot {
	d.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		s := d.Snapshot()
		var got []string
		for _, p := range s.Pods {
			got = append(got, p.Name+"="+p.Rate.String())
		}
		diff := cmp.Diff(limits, got)
		if diff == "" && len(s.Problems) == problems {
			return s
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("problems %v, pods (-want +got):\n%s", s.Problems, diff)
		}
		select {
		case <-d.Changes():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestFolderFollowsFiles(t *testing.T) {
	d := watchDir(t, map[string]string{"a.yaml": manifestOf("a", "10M"), "README.md": "not a pod", ".hidden.yaml": "{"})
	if s := d.want(0, "a=10M"); !s.Complete {
		t.Error("not complete")
	}
	d.write("b.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b","annotations":{"kubernetes.io/egress-bandwidth":"5M"}}}`)
	d.want(0, "a=10M", "b=5M")
	d.write("a.yaml", manifestOf("a", "20M"))
	d.want(0, "a=20M", "b=5M")
	d.write(".a.tmp", manifestOf("a", "30M"))
	if err := os.Rename(filepath.Join(d.path, ".a.tmp"), filepath.Join(d.path, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	d.want(0, "a=30M", "b=5M")
	if err := os.Remove(filepath.Join(d.path, "b.json")); err != nil {
		t.Fatal(err)
	}
	d.want(0, "a=30M")
}

func TestFolderKeepsLastGood(t *testing.T) {
	d := watchDir(t, map[string]string{"a.yaml": manifestOf("a", "10M"), "b.yaml": manifestOf("b", "5M")})
	d.want(0, "a=10M", "b=5M")
	d.write("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: nonsense}\n")
	want := filepath.Join(d.path, "a.yaml") + ": status.podIP:"
	s := await(t, d, func(s Snapshot) bool { return len(s.Problems) == 1 && strings.Contains(s.Problems[0].Error(), want) })
	if !s.Complete || len(s.Pods) != 2 || s.Pods[0].Rate != 10*bandwidth.Megabit {
		t.Errorf("snapshot %+v; want both pods, complete", s)
	}
	d.write("a.yaml", "") // a writer in the middle of its work
	d.want(1, "a=10M", "b=5M")
	d.write("c.yaml", "{") // never readable: nobody knows which pods it stands for
	if s := d.want(2, "a=10M", "b=5M"); s.Complete {
		t.Error("complete with a manifest that was never readable")
	}
	d.write("a.yaml", manifestOf("a", "20M"))
	d.write("c.yaml", manifestOf("c", "1M"))
	if s := d.want(0, "a=20M", "b=5M", "c=1M"); !s.Complete {
		t.Error("not complete though all is readable")
	}
}

func TestFolderDuplicatePods(t *testing.T) {
	d := watchDir(t, map[string]string{"a.yaml": manifestOf("x", "10M"), "b.yaml": manifestOf("x", "20M")})
	if s := d.want(1, "x=10M"); !strings.Contains(s.Problems[0].Error(), "b.yaml") || !strings.Contains(s.Problems[0].Error(), "already in a.yaml") {
		t.Errorf("problem %q; want both files named", s.Problems[0])
	}
}

// TestFolderSymlinkSwap changes the files as the kubelet does with a mounted ConfigMap.
func TestFolderSymlinkSwap(t *testing.T) {
	d := &dir{t: t, path: t.TempDir()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	version := func(name, limit string) {
		must(os.Mkdir(filepath.Join(d.path, name), 0o700))
		d.write(filepath.Join(name, "a.yaml"), manifestOf("a", limit))
		must(os.Symlink(name, filepath.Join(d.path, "..data_tmp")))
		must(os.Rename(filepath.Join(d.path, "..data_tmp"), filepath.Join(d.path, "..data")))
	}
	version("..v1", "10M")
	must(os.Symlink("..data/a.yaml", filepath.Join(d.path, "a.yaml")))
	f, err := NewFolder(d.path, logr.Discard())
	must(err)
	d.Folder = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	defer func() { cancel(); must(<-done) }()
	d.want(0, "a=10M")
	version("..v2", "20M")
	d.want(0, "a=20M")
}

func TestFolderThatGoesAway(t *testing.T) {
	d := watchDir(t, map[string]string{"a.yaml": manifestOf("a", "10M")})
	if err := os.Rename(d.path, d.path+".old"); err != nil {
		t.Fatal(err)
	}
	defer os.Rename(d.path+".old", d.path) //nolint:errcheck // for TempDir's clean-up
	d.reload()
	if s := d.want(1, "a=10M"); s.Complete {
		t.Error("complete without a folder")
	}
}

func TestNewFolderNeedsAFolder(t *testing.T) {
	if _, err := NewFolder(filepath.Join(t.TempDir(), "none"), logr.Discard()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v; want os.ErrNotExist", err)
	}
}

func TestReadManifestRefusesSpecialFiles(t *testing.T) {
	if _, err := readManifest("/dev/null"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v; want a regular file asked for", err)
	}
}

// FuzzDecodeManifest: whatever is in the folder, the agent lives, and what it accepts is safe to print and to store.
func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(web))
	f.Add([]byte("---\n{}"))
	f.Add([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","annotations":{"kubernetes.io/egress-bandwidth":"-1"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := decodeManifest(data)
		if err != nil {
			return
		}
		for _, p := range list {
			if !uidPattern.MatchString(p.UID) || strings.ContainsAny(p.String(), "\x1b\n ") || len(p.String()) > 320 {
				t.Errorf("accepted %q, %q", p.UID, p.String())
			}
			if p.Rate != 0 && !p.Rate.Valid() {
				t.Errorf("rate %d", p.Rate)
			}
		}
	})
}
