// SPDX-License-Identifier: Apache-2.0

package cnilab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kubepace/kubepace/tests/netlab"
)

// API stands in for kube-apiserver where only the time matters that the node takes: it lists and watches pods. It can
// be stopped and started again at the same address.
type API struct {
	URL string

	ns     *netlab.Namespace
	mu     sync.Mutex
	pods   map[string]*corev1.Pod // by UID
	events []metav1.WatchEvent    // number i made version i+1
	more   chan struct{}          // closed by the next event
	server *http.Server
	done   chan struct{}
	calls  map[string]int // lists and watches
}

// StartAPI listens on loopback inside a namespace.
func StartAPI(ns *netlab.Namespace) (*API, error) {
	a := &API{URL: "http://127.0.0.1:6443", ns: ns, pods: map[string]*corev1.Pod{}, more: make(chan struct{}), calls: map[string]int{}}
	return a, a.Start()
}

// Start lets it answer, again with all that it knew.
func (a *API) Start() error {
	var listener net.Listener
	err := a.ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:6443")
		return err
	})
	if err != nil {
		return fmt.Errorf("start the API: %w", err)
	}
	a.server, a.done = &http.Server{Handler: a}, make(chan struct{})
	go func() {
		defer close(a.done)
		_ = a.server.Serve(listener) // ends with Stop
	}()
	return nil
}

// Stop cuts every connection, and refuses new ones. Stopping again does nothing.
func (a *API) Stop() error {
	if a.server == nil {
		return nil
	}
	err := a.server.Close()
	<-a.done
	a.server = nil
	return err
}

// Put creates or changes a pod.
func (a *API) Put(pod *corev1.Pod) { a.change("MODIFIED", pod) }

// Remove deletes a pod.
func (a *API) Remove(pod *corev1.Pod) { a.change("DELETED", pod) }

func (a *API) change(kind string, pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pod = pod.DeepCopy()
	if _, known := a.pods[string(pod.UID)]; !known && kind == "MODIFIED" {
		kind = "ADDED"
	}
	pod.ResourceVersion = strconv.Itoa(len(a.events) + 1)
	a.pods[string(pod.UID)] = pod
	if kind == "DELETED" {
		delete(a.pods, string(pod.UID))
	}
	a.events = append(a.events, metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Object: pod}})
	close(a.more)
	a.more = make(chan struct{})
}

// Calls are how often pods were listed ("list") and watched ("watch").
func (a *API) Calls(verb string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[verb]
}

// ServeHTTP knows pods, and nothing else.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	switch {
	case r.URL.Path != "/api/v1/pods" || r.Method != http.MethodGet:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case query.Get("watch") == "":
		a.list(w)
	case query.Get("sendInitialEvents") != "": // no streaming lists
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	default:
		from, _ := strconv.Atoi(query.Get("resourceVersion"))
		a.watch(r.Context(), w, from)
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: reason, Code: int32(code),
	})
}

func (a *API) list(w http.ResponseWriter) {
	a.mu.Lock()
	a.calls["list"]++
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	list.ResourceVersion = strconv.Itoa(len(a.events))
	for _, pod := range a.pods {
		list.Items = append(list.Items, *pod)
	}
	a.mu.Unlock()
	_ = json.NewEncoder(w).Encode(list)
}

func (a *API) watch(ctx context.Context, w http.ResponseWriter, from int) {
	a.mu.Lock()
	a.calls["watch"]++
	a.mu.Unlock()
	encoder, flush := json.NewEncoder(w), w.(http.Flusher).Flush
	flush()
	for {
		a.mu.Lock()
		events, more := a.events[min(from, len(a.events)):], a.more
		a.mu.Unlock()
		for _, event := range events {
			if encoder.Encode(event) != nil {
				return
			}
		}
		flush()
		from += len(events)
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
	}
}
