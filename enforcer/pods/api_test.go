// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/kubepace/kubepace/bandwidth"
)

func object(name, limit, ip string) *corev1.Pod {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1"},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "c", Image: "x"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
	pod.Annotations = map[string]string{"other": "text", bandwidth.AnnotationNetns: "/var/run/netns/neighbour"}
	if limit != "" {
		pod.Annotations[bandwidth.AnnotationEgress] = limit
	}
	return pod
}

// apiServer answers list and watch of pods, and nothing else.
type apiServer struct {
	mu        sync.Mutex
	selectors []string
	paths     map[string]bool
	list      []corev1.Pod
	events    chan metav1.WatchEvent
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	a.mu.Lock()
	a.selectors = append(a.selectors, query.Get("fieldSelector"))
	a.paths[r.URL.Path] = true
	list := a.list
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	switch {
	case query.Get("watch") == "":
		encoder.Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: list}) //nolint:errcheck // test
	case query.Get("sendInitialEvents") != "": // an API server without streaming lists
		w.WriteHeader(http.StatusUnprocessableEntity)
		encoder.Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422}) //nolint:errcheck // test
	default:
		flush := w.(http.Flusher).Flush
		flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case e := <-a.events:
				encoder.Encode(e) //nolint:errcheck // test
				flush()
			}
		}
	}
}

func (a *apiServer) send(kind string, pod *corev1.Pod) {
	a.events <- metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Object: pod}}
}

func TestAPIServerSource(t *testing.T) {
	api := &apiServer{paths: map[string]bool{}, events: make(chan metav1.WatchEvent), list: []corev1.Pod{
		*object("b", "10M", "10.0.0.2"), *object("a", "", "10.0.0.1"), *object("c", "10 megabits", "10.0.0.3"), *object("d", "5M", "nonsense"),
	}}
	server := httptest.NewServer(api)
	defer server.Close()
	source, err := NewAPIServer(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, "node1", logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	if s := source.Snapshot(); s.Complete || len(s.Pods) != 0 {
		t.Errorf("snapshot before the first sync: %+v; want incomplete", s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		server.CloseClientConnections()
	}()

	s := await(t, source, func(s Snapshot) bool { return s.Complete && len(s.Pods) == 4 })
	if p := s.Pods[0]; p.Name != "a" || p.Limited() || p.Netns != "" {
		t.Errorf("pod %+v; want no limit, and no netns from the API", p)
	}
	if p := s.Pods[1]; p.Rate != 10*bandwidth.Megabit || p.UID != "uid-b" || p.Origin != OriginAPI || len(p.IPs) != 1 || p.Netns != "" {
		t.Errorf("pod %+v; want 10M", p)
	}
	if p := s.Pods[2]; p.Err == nil || !p.Limited() {
		t.Errorf("pod %+v; want an unreadable limit", p)
	}
	if p := s.Pods[3]; p.Err == nil || !strings.Contains(p.Err.Error(), "status.podIP") || len(s.Problems) != 1 {
		t.Errorf("pod %+v, problems %v; want the bad address told, and the pod known", p, s.Problems)
	}

	changed := object("b", "20M", "10.0.0.2")
	changed.ResourceVersion = "2"
	api.send("MODIFIED", changed)
	await(t, source, func(s Snapshot) bool { return s.Pods[1].Rate == 20*bandwidth.Megabit })
	gone := object("a", "", "")
	gone.ResourceVersion = "3"
	api.send("DELETED", gone)
	await(t, source, func(s Snapshot) bool { return len(s.Pods) == 3 })

	api.mu.Lock()
	defer api.mu.Unlock()
	for _, selector := range api.selectors {
		if selector != "spec.nodeName=node1" {
			t.Errorf("field selector %q; want this node's pods only", selector)
		}
	}
	if len(api.paths) != 1 || !api.paths["/api/v1/pods"] {
		t.Errorf("requests for %v; want pods only", api.paths)
	}
}

func await(t *testing.T, source Source, good func(Snapshot) bool) Snapshot {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s := source.Snapshot()
		if good(s) {
			return s
		}
		select {
		case <-source.Changes():
		case <-deadline:
			t.Fatalf("snapshot stays %+v", s)
		}
	}
}

// TestAPIServerAway: an API server that never answers leaves the source incomplete, and Run ends without an error.
func TestAPIServerAway(t *testing.T) {
	source, err := NewAPIServer(&rest.Config{Host: "http://127.0.0.1:1"}, "node1", logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := source.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := source.Snapshot(); s.Complete {
		t.Error("complete without an API server")
	}
}

// TestWhatTheWatchMissed: a pod whose end was missed comes as a name; one that cannot be read stays known.
func TestWhatTheWatchMissed(t *testing.T) {
	a, err := NewAPIServer(&rest.Config{Host: "127.0.0.1:1"}, "node1", logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	a.synced.Store(true)
	bad := object("bad", "10M", "10.0.0.1")
	a.keep(object("web", "10M", "10.0.0.2"))
	a.keep(bad)
	first := a.Snapshot()
	bad.Status.PodIP = "no address"
	a.keep(bad)
	s := a.Snapshot()
	if len(first.Pods) != 2 || first.Pods[0].Err != nil || len(first.Problems) != 0 {
		t.Errorf("%+v; want both, whatever came later", first)
	}
	if len(s.Pods) != 2 || s.Pods[0].Name != "bad" || s.Pods[0].Err == nil || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Error(), "default/bad") {
		t.Errorf("%+v; want both, and what is wrong with one", s)
	}
	a.drop(toolscache.DeletedFinalStateUnknown{Key: "default/bad", Obj: "whatever"})
	a.drop(object("web", "", ""))
	a.drop(17)
	if s := a.Snapshot(); len(s.Pods) != 0 || len(s.Problems) != 0 || !s.Complete {
		t.Errorf("%+v; want none", s)
	}
}

func TestStripKeepsWhatIsRead(t *testing.T) {
	pod := object("a", "10M", "10.0.0.1")
	full, err := fromObject(pod, OriginAPI)
	if err != nil {
		t.Fatal(err)
	}
	small, err := strip(pod)
	if err != nil {
		t.Fatal(err)
	}
	again, err := fromObject(small.(*corev1.Pod), OriginAPI)
	if err != nil || again.String() != full.String() || again.UID != full.UID || again.Rate != full.Rate || again.Phase != full.Phase || len(again.IPs) != 1 {
		t.Errorf("stripped pod reads as %+v, %v; want %+v", again, err, full)
	}
	if s := small.(*corev1.Pod); len(s.Spec.Containers) != 0 || len(s.Annotations) != 1 {
		t.Errorf("stripped pod still holds %v, %v", s.Spec.Containers, s.Annotations)
	}
}

// TestMatters: what the loop does not read is no reason for a pass.
func TestMatters(t *testing.T) {
	for name, change := range map[string]struct {
		do   func(pod *corev1.Pod)
		want bool
	}{
		"nothing":       {func(*corev1.Pod) {}, false},
		"version":       {func(pod *corev1.Pod) { pod.ResourceVersion = "2" }, false},
		"an annotation": {func(pod *corev1.Pod) { pod.Annotations["other"] = "word" }, false},
		"kubelet's":     {func(pod *corev1.Pod) { pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Ready: true}} }, false},
		"limit":         {func(pod *corev1.Pod) { pod.Annotations[bandwidth.AnnotationEgress] = "20M" }, true},
		"no limit":      {func(pod *corev1.Pod) { delete(pod.Annotations, bandwidth.AnnotationEgress) }, true},
		"address":       {func(pod *corev1.Pod) { pod.Status.PodIP = "10.0.0.2" }, true},
		"phase":         {func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded }, true},
		"another pod":   {func(pod *corev1.Pod) { pod.UID = "other" }, true},
		"asked to end":  {func(pod *corev1.Pod) { now := metav1.Now(); pod.DeletionTimestamp = &now }, true},
		"our condition": {func(pod *corev1.Pod) {
			pod.Status.Conditions = []corev1.PodCondition{{Type: bandwidth.ConditionEnforced, Status: corev1.ConditionTrue}}
		}, false},
		"and our resource": {func(pod *corev1.Pod) {
			pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{bandwidth.Resource: resource.MustParse("10M")}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := object("a", "10M", "10.0.0.1")
			now := before.DeepCopy()
			change.do(now)
			x, err := strip(before)
			if err != nil {
				t.Fatal(err)
			}
			y, err := strip(now)
			if err != nil {
				t.Fatal(err)
			}
			if got := matters(x, y); got != change.want {
				t.Errorf("matters: %v, want %v", got, change.want)
			}
		})
	}
}

// TestNetnsOnlyFromTheFolder: a pod's author could name a neighbour's namespace.
func TestNetnsOnlyFromTheFolder(t *testing.T) {
	for origin, want := range map[Origin]string{OriginAPI: "", OriginManifests: "/var/run/netns/neighbour"} {
		if p, err := fromObject(object("a", "10M", "10.0.0.1"), origin); err != nil || p.Netns != want {
			t.Errorf("%s: netns %q, %v; want %q", origin, p.Netns, err, want)
		}
	}
}
