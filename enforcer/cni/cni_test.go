// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// written is what libcni 1.3 writes for containerd and the bridge plugin, config left out.
const written = `{"kind":"cniCacheV1","containerId":"5f6f1c00","config":"e30=","ifName":"eth0","networkName":"cbr0",
"netns":"/var/run/netns/cni-0a1b","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","team-a"],["K8S_POD_NAME","web-0"],
["K8S_POD_INFRA_CONTAINER_ID","5f6f1c00"],["K8S_POD_UID","1b4e28ba-2fa1-11d2-883f-0016d3cca427"]],
"capabilityArgs":{"bandwidth":{"ingressRate":0,"ingressBurst":0,"egressRate":10000000,"egressBurst":2147483647},"dns":{}},
"result":{"cniVersion":"1.0.0","dns":{},"interfaces":[{"mac":"0a:58:0a:f4:00:01","name":"cni0"},{"mac":"5e:1c:00:00:00:01","name":"veth5f6f1c00"},
{"mac":"0a:58:0a:f4:00:05","name":"eth0","sandbox":"/var/run/netns/cni-0a1b"}],
"ips":[{"address":"10.244.0.5/24","gateway":"10.244.0.1","interface":2},{"address":"fd00:10:244::5/64","interface":2}]}}`

var dirs = []string{"/netns", "/var/run/netns", "/run/netns"}

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func web() result {
	return result{
		pod:     datapath.Pod{Namespace: "team-a", Name: "web-0", UID: "1b4e28ba-2fa1-11d2-883f-0016d3cca427"},
		sandbox: "5f6f1c00", netns: "cni-0a1b", ips: addrs("10.244.0.5", "fd00:10:244::5"),
		hostDevices: []string{"cni0", "veth5f6f1c00"}, inside: []string{"eth0"}, rate: 10 * bandwidth.Megabit,
	}
}

var compare = cmp.Options{
	cmp.AllowUnexported(result{}), cmpopts.EquateErrors(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		old, new string
		want     func(r *result)
	}{
		"as written":                             {"", "", func(*result) {}},
		"no netns of its own":                    {`"netns":"/var/run/netns/cni-0a1b",`, "", func(*result) {}},
		"netns in another of the folder's names": {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/run/netns/./cni-0a1b"`, func(*result) {}},
		"netns of the agent's folder":            {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/netns/x"`, func(r *result) { r.netns = "x" }},
		"netns of a process":                     {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/proc/1/ns/net"`, func(r *result) { r.netns = "" }},
		"netns that leads out":                   {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/var/run/netns/../../../proc/1/ns/net"`, func(r *result) { r.netns = "" }},
		"netns that is the folder":               {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/var/run/netns/x/.."`, func(r *result) { r.netns = "" }},
		"netns below the folder":                 {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"/var/run/netns/x/y"`, func(r *result) { r.netns = "" }},
		"relative netns":                         {`"netns":"/var/run/netns/cni-0a1b"`, `"netns":"run/netns/x"`, func(r *result) { r.netns = "" }},
		"no bandwidth":                           {`"egressRate":10000000,`, "", func(r *result) { r.rate = 0 }},
		"rate 0":                                 {`"egressRate":10000000`, `"egressRate":0`, func(r *result) { r.rate = 0 }},
		"rate as a float":                        {`"egressRate":10000000`, `"egressRate":1e+07`, func(*result) {}},
		"hostile addresses":                      {`"10.244.0.5/24"`, `"10.244.0.5/240"`, func(r *result) { r.ips = addrs("fd00:10:244::5") }},
		"loopback":                               {`"10.244.0.5/24"`, `"127.0.0.1/8"`, func(r *result) { r.ips = addrs("fd00:10:244::5") }},
		"the loopback plugin's":                  {`"name":"eth0"`, `"name":"lo"`, func(r *result) { r.inside = nil }},
		"specification 0.2":                      {`"ips":[`, `"ip4":{"ip":"10.9.9.9/24"},"ips":[`, func(r *result) { r.ips = addrs("10.9.9.9", "10.244.0.5", "fd00:10:244::5") }},
	} {
		want := web()
		test.want(&want)
		got, err := parse([]byte(replace(t, test.old, test.new)), dirs)
		if diff := cmp.Diff(want, got, compare); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func replace(t *testing.T, old, with string) string {
	t.Helper()
	if old != "" && !strings.Contains(written, old) {
		t.Fatalf("the file has no %s", old)
	}
	return strings.Replace(written, old, with, 1)
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"half a file":     {`"kind":"cniCacheV1",`, `"kind":`, "invalid character"},
		"another kind":    {"cniCacheV1", "cniCacheV9", `kind "cniCacheV9"`},
		"no pod":          {"K8S_POD_UID", "OTHER", "is about no pod"},
		"UID":             {"1b4e28ba", `\u001b[2J`, "K8S_POD_UID"},
		"name":            {"web-0", `web\n0`, "K8S_POD_NAME"},
		"namespace":       {"team-a", "../team", "K8S_POD_NAMESPACE"},
		"sandbox":         {`"containerId":"5f6f1c00"`, `"containerId":"../x"`, "containerId"},
		"wrong type":      {`"cniArgs":[`, `"cniArgs":[7,`, "cannot unmarshal"},
		"rate that is no": {`"egressRate":10000000`, `"egressRate":"fast"`, "number"},
	} {
		if _, err := parse([]byte(replace(t, test.old, test.new)), dirs); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}
	for text, want := range map[string]string{"-1": "is negative", "999": "below", "9e18": "above", "1000.5": "whole"} {
		r, err := parse([]byte(replace(t, "10000000", text)), dirs)
		if err != nil || r.rate != 0 || r.rateErr == nil || !strings.Contains(r.rateErr.Error(), want) {
			t.Errorf("rate %s: %v, %v; want the pod, and %q", text, r.rateErr, err, want)
		}
	}
}

// FuzzParse: whatever is in a file, the agent lives, and what it accepts is safe to print, to store and to open.
func FuzzParse(f *testing.F) {
	f.Add([]byte(written))
	f.Add([]byte(`{"kind":"cniCacheV1","cniArgs":[["K8S_POD_UID","x"],["K8S_POD_NAME","x"],["K8S_POD_NAMESPACE","x"]],"containerId":"x","netns":"/run/netns/.."}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(data, dirs)
		if err != nil {
			return
		}
		if !uidPattern.MatchString(r.pod.UID) || strings.ContainsAny(r.pod.String()+r.sandbox, "\x1b\n ") {
			t.Errorf("accepted %q, %q of %q", r.pod.UID, r.pod.String(), r.sandbox)
		}
		if r.netns == "." || r.netns == ".." || strings.ContainsRune(r.netns, '/') {
			t.Errorf("netns %q is no file in the folder", r.netns)
		}
		if r.rate != 0 && !r.rate.Valid() {
			t.Errorf("rate %d", r.rate)
		}
	})
}

func TestView(t *testing.T) {
	at := func(second int64, change func(r *result)) result {
		r := web()
		r.written = time.Unix(second, 0)
		if change != nil {
			change(&r)
		}
		return r
	}
	uid := web().pod.UID
	list := func(v *View, uid string) (text []string) {
		for _, s := range v.Sandboxes(uid) {
			text = append(text, fmt.Sprintf("%s %s %s %d", s.ID, s.Netns, s.Rate, len(s.IPs)))
		}
		return text
	}
	other := func(r *result) { r.pod.UID, r.pod.Name, r.sandbox = "other", "other", "bb" }
	for name, test := range map[string]struct {
		results []result
		want    []string
		owners  map[string]string
	}{
		"one": {[]result{at(1, nil)}, []string{"5f6f1c00 cni-0a1b 10M 2"}, map[string]string{"cni-0a1b": uid, "x": ""}},
		"a second network is the same sandbox, the smallest rate counts": {
			[]result{at(1, nil), at(2, func(r *result) { r.ips, r.rate, r.hostDevices = addrs("10.9.0.2"), 5*bandwidth.Megabit, nil })},
			[]string{"5f6f1c00 cni-0a1b 5M 3"}, nil},
		"loopback's file adds nothing": {
			[]result{at(1, nil), at(2, func(r *result) { r.ips, r.rate, r.hostDevices = nil, 0, nil })}, []string{"5f6f1c00 cni-0a1b 10M 2"}, nil},
		"the newest sandbox first": {
			[]result{at(1, nil), at(3, func(r *result) { r.sandbox, r.netns = "cc", "cni-c" }), at(2, func(r *result) { r.sandbox, r.netns = "bb", "cni-b" })},
			[]string{"cc cni-c 10M 2", "bb cni-b 10M 2", "5f6f1c00 cni-0a1b 10M 2"}, nil},
		"a namespace belongs to its newest sandbox": {
			[]result{at(1, nil), at(2, other)}, nil, map[string]string{"cni-0a1b": "other"}},
		"not to an older one":                          {[]result{at(2, nil), at(1, other)}, []string{"5f6f1c00 cni-0a1b 10M 2"}, map[string]string{"cni-0a1b": uid}},
		"without a namespace there is nothing to find": {[]result{at(1, func(r *result) { r.netns = "" })}, nil, map[string]string{"": ""}},
	} {
		v := newView(test.results, nil)
		if diff := cmp.Diff(test.want, list(v, uid)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for netns, owner := range test.owners {
			if got := v.Owner(netns); got != owner {
				t.Errorf("%s: %q belongs to %q; want %q", name, netns, got, owner)
			}
		}
	}
}

// folder is a cache that runs for as long as the test.
type folder struct {
	t    *testing.T
	path string
	*Cache
}

func runCache(t *testing.T, path string) *folder {
	t.Helper()
	f := &folder{t: t, path: path, Cache: New(path, "/netns", logr.Discard())}
	f.rescan = time.Hour // inotify has to do
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

func (f *folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.path, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// want waits until these pods are there, as "uid rate".
func (f *folder) want(lines ...string) *View {
	f.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var got []string
		v := f.View()
		for _, uid := range v.UIDs() {
			got = append(got, uid+" "+v.Sandboxes(uid)[0].Rate.String())
		}
		diff := cmp.Diff(lines, got)
		if diff == "" {
			return v
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("pods (-want +got):\n%s", diff)
		}
		select {
		case <-f.Changes():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func about(uid, rate string) string {
	text := strings.Replace(written, web().pod.UID, uid, 1)
	return strings.Replace(strings.ReplaceAll(text, "cni-0a1b", "cni-"+uid), "10000000", rate, 1)
}

func TestCacheFollowsFiles(t *testing.T) {
	path := t.TempDir()
	f := runCache(t, path)
	f.want()
	f.write("cbr0-a-eth0", about("a", "1000000"))
	f.want("a 1M")
	f.write("cbr0-b-eth0", about("b", "2000000"))
	f.want("a 1M", "b 2M")
	f.write("cbr0-a-eth0", about("a", "3000000"))
	f.want("a 3M", "b 2M")
	f.write("podman-x-eth0", strings.ReplaceAll(written, "K8S_", ""))
	f.write("cbr0-c-eth0", about("c", "1000000")[:200])
	f.write("big", strings.Repeat(" ", maxFile+1))
	for name, make := range map[string]func(path string) error{
		"link": func(p string) error { return os.Symlink(filepath.Join(path, "cbr0-a-eth0"), p) },
		"fifo": func(p string) error { return unix.Mkfifo(p, 0o600) },
		"dir":  func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		if err := make(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(path, "cbr0-b-eth0")); err != nil {
		t.Fatal(err)
	}
	v := f.want("a 3M")
	if len(v.Problems()) != 0 {
		t.Errorf("problems %v with files that may be half written", v.Problems())
	}
}

// TestCacheReportsWhatStaysUnreadable, and reads it once it is good.
func TestCacheReportsWhatStaysUnreadable(t *testing.T) {
	path := t.TempDir()
	file := filepath.Join(path, "cbr0-a-eth0")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	f := runCache(t, path)
	if p := f.want().Problems(); len(p) != 1 || !strings.Contains(p[0].Error(), `"cbr0-a-eth0"`) {
		t.Errorf("problems %v; want the bad file named", p)
	}
	f.write("cbr0-a-eth0", about("a", "1000000"))
	if p := f.want("a 1M").Problems(); len(p) != 0 {
		t.Errorf("problems %v; want none any more", p)
	}
}

// TestCacheFolderThatComesLater: the node's first pod makes the folder, and is seen without waiting for a rescan.
func TestCacheFolderThatComesLater(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "lib", "cni", "results")
	f := runCache(t, path)
	f.want()
	for range 3 {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		f.write("cbr0-a-eth0", about("a", "1000000"))
		f.want("a 1M")
		if err := os.RemoveAll(filepath.Join(top, "lib")); err != nil {
			t.Fatal(err)
		}
		f.want()
	}
}

// TestCacheAsScanned: a rescan reads the folder again where a file came or went, the folder is another, or a file could
// not be read.
func TestCacheAsScanned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	f := &folder{t: t, path: path, Cache: New(path, "/netns", logr.Discard())}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"a file came", func() error { f.write("cbr0-a-eth0", about("a", "1000000")); return nil }},
		{"a file went", func() error { return os.Remove(filepath.Join(path, "cbr0-a-eth0")) }},
		{"another folder", func() error { return errors.Join(os.Rename(path, path+"-old"), os.Mkdir(path, 0o700)) }},
	} {
		if !f.asScanned() {
			t.Errorf("before %q: not as it was scanned", step.what)
		}
		time.Sleep(20 * time.Millisecond) // the clock of file systems is coarse
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if f.asScanned() {
			t.Errorf("%s: taken for as it was scanned", step.what)
		}
		f.scan()
	}
	f.write("cbr0-bad-eth0", "{")
	f.scan()
	if f.asScanned() {
		t.Error("an unreadable file is not looked at again")
	}
}

func TestCacheReadsTheNewestOfTooMany(t *testing.T) {
	path := t.TempDir()
	f := &folder{t: t, path: path}
	old := time.Now().Add(-time.Hour)
	for i := range maxFiles {
		name := fmt.Sprintf("old-%d", i)
		f.write(name, "")
		if err := os.Chtimes(filepath.Join(path, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	f.write("cbr0-a-eth0", about("a", "1000000"))
	f.Cache = New(path, "/netns", logr.Discard())
	v := f.want("a 1M")
	if p := v.Problems(); len(p) == 0 || len(p) > 20 || !strings.Contains(p[len(p)-1].Error(), "only the newest") {
		t.Errorf("%d problems; want few, and that there are too many files", len(p))
	}
}

// BenchmarkUpdate is what one CNI ADD costs on a node with 250 pods.
func BenchmarkUpdate(b *testing.B) {
	path := b.TempDir()
	for i := range 250 {
		name := fmt.Sprintf("cbr0-%d-eth0", i)
		if err := os.WriteFile(filepath.Join(path, name), []byte(about(fmt.Sprintf("uid-%d", i), "1000000")), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	c := New(path, "/netns", logr.Discard())
	for b.Loop() {
		c.update("cbr0-7-eth0")
		if len(c.View().UIDs()) != 250 {
			b.Fatal("pods are missing")
		}
	}
}
