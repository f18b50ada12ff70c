// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/bandwidth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNamespaces holds labels by name; a name that is missing is an API failure.
type fakeNamespaces map[string]map[string]string

func (f fakeNamespaces) Labels(_ context.Context, name string) (map[string]string, error) {
	labels, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("read namespace %q: connection refused", name)
	}
	return labels, nil
}

var namespaces = fakeNamespaces{
	"plain": nil,
	"team":  {bandwidth.LabelDefault: "25M", bandwidth.LabelMax: "50M", bandwidth.LabelMin: "1M"},
	"deny":  {bandwidth.LabelMax: "50M", bandwidth.LabelOverMax: "deny"},
	"dry":   {bandwidth.LabelMax: "50M", bandwidth.LabelMode: "dry-run"},
	"off":   {bandwidth.LabelMax: "50M", bandwidth.LabelMode: "off"},
}

type mux map[string]http.Handler

func (m mux) Register(path string, h http.Handler) { m[path] = h }

func newMux(metrics *Metrics) mux {
	m := mux{}
	Register(m, Options{Namespaces: namespaces, Metrics: metrics})
	return m
}

// review writes an AdmissionReview the way the API server does. old may be empty.
func review(operation, namespace, object, old string) string {
	request := fmt.Sprintf(`"uid":"u1","operation":%q,"namespace":%q,"name":"web","object":%s`, operation, namespace, object)
	if old != "" {
		request += `,"oldObject":` + old
	}
	return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{` + request + `}}`
}

// pod writes a Pod with these annotations; empty means that the map is missing.
func pod(annotations string) string {
	meta := `"name":"web"`
	if annotations != "" {
		meta += `,"annotations":` + annotations
	}
	return `{"apiVersion":"v1","kind":"Pod","metadata":{` + meta + `},"spec":{"containers":[{"name":"c","image":"i"}]}}`
}

func post(h http.Handler, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// response is the response part of the review, with the patch as readable text.
func response(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var out struct {
		Response map[string]any `json:"response"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
		t.Fatalf("status %d, %v: %s", w.Code, err, w.Body)
	}
	if p, ok := out.Response["patch"].(string); ok {
		var raw []byte
		if err := json.Unmarshal([]byte(`"`+p+`"`), &raw); err != nil {
			t.Fatal(err)
		}
		out.Response["patch"] = json.RawMessage(raw)
	}
	text := &strings.Builder{}
	enc := json.NewEncoder(text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out.Response); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(text.String())
}

const (
	ok          = `{"allowed":true,"status":{"code":200,"metadata":{}},"uid":"u1"}`
	mirrorPod   = `{"kubernetes.io/config.mirror":"x","kubernetes.io/egress-bandwidth":"10m"}`
	dyingPod    = `{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z","annotations":{"kubernetes.io/egress-bandwidth":"10m"}}}`
	hostPod     = `{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":"1G"}},"spec":{"hostNetwork":true}}`
	binding     = `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"web","annotations":{"kubernetes.io/egress-bandwidth":"9G","x":"y"}},"target":{"name":"n1"}}`
	bareBinding = `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"web","annotations":{"x":"y"}},"target":{"name":"n1"}}`
)

func TestResponses(t *testing.T) {
	tests := []struct {
		name, path, operation, namespace, object, old string
		want                                          string
	}{
		{"kept, map missing: nothing to do", PathMutatePods, "CREATE", "plain", pod(""), "", ok},
		{"default, map missing", PathMutatePods, "CREATE", "team", pod(""), "",
			`{"allowed":true,"auditAnnotations":{"limit":"25M","reason":"namespace-default"},` +
				`"patch":[{"op":"add","path":"/metadata/annotations","value":{"egress.kubepace.io/source":"namespace-default","kubernetes.io/egress-bandwidth":"25M"}}],` +
				`"patchType":"JSONPatch","status":{"code":200,"metadata":{}},"uid":"u1"}`},
		{"default, map empty", PathMutatePods, "CREATE", "team", pod(`{}`), "",
			`{"allowed":true,"auditAnnotations":{"limit":"25M","reason":"namespace-default"},` +
				`"patch":[{"op":"add","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth","value":"25M"},` +
				`{"op":"add","path":"/metadata/annotations/egress.kubepace.io~1source","value":"namespace-default"}],` +
				`"patchType":"JSONPatch","status":{"code":200,"metadata":{}},"uid":"u1"}`},
		{"capped, forged source replaced", PathMutatePods, "CREATE", "team",
			pod(`{"a~/b":"c","kubernetes.io/egress-bandwidth":"1G","egress.kubepace.io/source":"pod"}`), "",
			`{"allowed":true,"auditAnnotations":{"limit":"50M","reason":"capped","requested":"1G"},` +
				`"patch":[{"op":"replace","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth","value":"50M"},` +
				`{"op":"add","path":"/metadata/annotations/egress.kubepace.io~1requested","value":"1G"},` +
				`{"op":"replace","path":"/metadata/annotations/egress.kubepace.io~1source","value":"capped"}],` +
				`"patchType":"JSONPatch","status":{"code":200,"metadata":{}},"uid":"u1",` +
				`"warnings":["egress limit 1G is above namespace \"team\"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M"]}`},
		{"request dropped", PathMutatePods, "UPDATE", "team",
			pod(`{"kubernetes.io/egress-bandwidth":"20M","egress.kubepace.io/requested":"1G","egress.kubepace.io/source":"pod"}`),
			pod(`{"kubernetes.io/egress-bandwidth":"50M","egress.kubepace.io/requested":"1G","egress.kubepace.io/source":"capped"}`),
			`{"allowed":true,"auditAnnotations":{"limit":"20M","reason":"pod"},` +
				`"patch":[{"op":"remove","path":"/metadata/annotations/egress.kubepace.io~1requested"}],` +
				`"patchType":"JSONPatch","status":{"code":200,"metadata":{}},"uid":"u1"}`},
		{"denied", PathMutatePods, "CREATE", "deny", pod(`{"kubernetes.io/egress-bandwidth":"1G"}`), "",
			`{"allowed":false,"auditAnnotations":{"reason":"denied","requested":"1G"},"status":{"code":422,"details":{"causes":[` +
				`{"field":"metadata.annotations[kubernetes.io/egress-bandwidth]","message":"Invalid value: \"1G\": is above namespace \"deny\"'s maximum 50M (label egress.kubepace.io/max); write at most \"50M\"","reason":"FieldValueInvalid"}],` +
				`"kind":"Pod","name":"web"},"message":"metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: \"1G\": is above namespace \"deny\"'s maximum 50M (label egress.kubepace.io/max); write at most \"50M\"",` +
				`"metadata":{},"reason":"Invalid","status":"Failure"},"uid":"u1"}`},
		{"dry-run mode changes nothing", PathMutatePods, "CREATE", "dry", pod(`{"kubernetes.io/egress-bandwidth":"1G"}`), "",
			`{"allowed":true,"auditAnnotations":{"limit":"50M","mode":"dry-run","reason":"capped","requested":"1G"},"status":{"code":200,"metadata":{}},"uid":"u1",` +
				`"warnings":["egress dry-run, nothing changed: egress limit 1G is above namespace \"dry\"'s maximum 50M (label egress.kubepace.io/max): admitted with 50M"]}`},
		{"off", PathMutatePods, "CREATE", "off", pod(`{"kubernetes.io/egress-bandwidth":"1G"}`), "", ok},
		{"host network", PathMutatePods, "CREATE", "team", hostPod, "",
			`{"allowed":true,"auditAnnotations":{"reason":"host-network"},"status":{"code":200,"metadata":{}},"uid":"u1",` +
				`"warnings":["egress limit \"1G\" cannot be enforced: hostNetwork pods send from the node's own device"]}`},
		{"mirror pod", PathMutatePods, "CREATE", "team", pod(mirrorPod), "", ok},
		{"being deleted", PathMutatePods, "UPDATE", "team", dyingPod, pod(""), ok},
		{"update of something else", PathMutatePods, "UPDATE", "team", pod(`{"kubernetes.io/egress-bandwidth":"9G"}`),
			pod(`{"kubernetes.io/egress-bandwidth":"9G","other":"1"}`), ok},
		{"final object is fine", PathValidatePods, "CREATE", "team",
			pod(`{"kubernetes.io/egress-bandwidth":"50M","egress.kubepace.io/requested":"1G","egress.kubepace.io/source":"capped"}`), "",
			`{"allowed":true,"auditAnnotations":{"limit":"50M","reason":"capped","requested":"1G"},"status":{"code":200,"metadata":{}},"uid":"u1"}`},
		{"final object was changed", PathValidatePods, "CREATE", "team", pod(`{"kubernetes.io/egress-bandwidth":"25000k","egress.kubepace.io/source":"namespace-default"}`), "",
			`{"allowed":false,"auditAnnotations":{"reason":"denied","requested":"25000k"},"status":{"code":422,"details":{"causes":[` +
				`{"field":"metadata.annotations[kubernetes.io/egress-bandwidth]","message":"Invalid value: \"25000k\": is not the canonical text that every network plugin reads alike; write \"25M\"","reason":"FieldValueInvalid"}],` +
				`"kind":"Pod","name":"web"},"message":"metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: \"25000k\": is not the canonical text that every network plugin reads alike; write \"25M\"",` +
				`"metadata":{},"reason":"Invalid","status":"Failure"},"uid":"u1"}`},
		{"binding without our keys", PathMutateBindings, "CREATE", "team", bareBinding, "", ok},
		{"binding drops our keys", PathMutateBindings, "CREATE", "team", binding, "",
			`{"allowed":true,"patch":[{"op":"remove","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth"}],` +
				`"patchType":"JSONPatch","status":{"code":200,"metadata":{}},"uid":"u1",` +
				`"warnings":["a binding cannot set kubernetes.io/egress-bandwidth: ignored; annotate the pod"]}`},
		{"binding in dry-run mode", PathMutateBindings, "CREATE", "dry", binding, "",
			`{"allowed":true,"status":{"code":200,"metadata":{}},"uid":"u1",` +
				`"warnings":["egress dry-run, nothing changed: a binding cannot set kubernetes.io/egress-bandwidth: ignored; annotate the pod"]}`},
		{"binding where off", PathMutateBindings, "CREATE", "off", binding, "", ok},
		{"binding still carries our keys", PathValidateBindings, "CREATE", "team", binding, "",
			`{"allowed":false,"status":{"code":422,"details":{"causes":[{"field":"metadata.annotations[kubernetes.io/egress-bandwidth]",` +
				`"message":"Forbidden: a binding cannot set it; annotate the pod","reason":"FieldValueForbidden"}],"kind":"Binding","name":"web"},` +
				`"message":"metadata.annotations[kubernetes.io/egress-bandwidth]: Forbidden: a binding cannot set it; annotate the pod",` +
				`"metadata":{},"reason":"Invalid","status":"Failure"},"uid":"u1"}`},
		{"finished binding", PathValidateBindings, "CREATE", "team", bareBinding, "", ok},
	}
	handlers := newMux(nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := response(t, post(handlers[tt.path], review(tt.operation, tt.namespace, tt.object, tt.old)))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// What is not a verdict must not look like one: the API server takes every HTTP 200 for the webhook's own decision.
func TestFailuresAreLeftToFailurePolicy(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	panics := newEndpoint("/panics", func(context.Context, admission.Request) (admission.Response, error) {
		panic("boom")
	}, metrics)
	handlers := newMux(metrics)
	tests := []struct {
		name    string
		handler http.Handler
		body    string
		want    string
	}{
		{"namespace cannot be read", handlers[PathMutatePods], review("CREATE", "gone", pod(""), ""), "connection refused"},
		{"namespace cannot be read, binding", handlers[PathValidateBindings], review("CREATE", "gone", binding, ""), "connection refused"},
		{"object of another shape", handlers[PathMutatePods], review("CREATE", "team", `{"metadata":[1]}`, ""), "decode object"},
		{"no object", handlers[PathValidatePods], review("CREATE", "team", "null", ""), "holds none"},
		{"no old object", handlers[PathValidatePods], review("UPDATE", "team", pod(""), ""), "old object"},
		{"panic", panics, review("CREATE", "team", pod(""), ""), "panic: boom"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := post(tt.handler, tt.body)
			if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		})
	}
	want := []string{"kubepace_admission_failures_total path=/mutate/pods 2", "kubepace_admission_failures_total path=/panics 1",
		"kubepace_admission_failures_total path=/validate/bindings 1", "kubepace_admission_failures_total path=/validate/pods 2"}
	if diff := cmp.Diff(want, counters(t, registry)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHostileBodies(t *testing.T) {
	h := newMux(nil)[PathMutatePods]
	for name, body := range map[string]string{
		"empty": "", "not json": "{", "another kind": `{"apiVersion":"v1","kind":"Pod"}`,
		"no request": `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
		"too large":  review("CREATE", "plain", pod(`{"x":"`+strings.Repeat("x", 8<<20)+`"}`), ""),
	} {
		t.Run(name, func(t *testing.T) {
			w := post(h, body)
			if strings.Contains(w.Body.String(), `"allowed":true`) {
				t.Errorf("admitted: %s", w.Body)
			}
		})
	}
}

// counters gives every counter as "name label=value... count", sorted.
func counters(t *testing.T, registry *prometheus.Registry) []string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			line := f.GetName()
			for _, l := range m.GetLabel() {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			out = append(out, fmt.Sprintf("%s %v", line, m.GetCounter().GetValue()))
		}
	}
	return out
}

func TestDecisionsAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	handlers := newMux(metrics)
	body := review("CREATE", "team", pod(""), "")
	post(handlers[PathMutatePods], body)
	post(handlers[PathMutatePods], strings.Replace(body, `"uid"`, `"dryRun":true,"uid"`, 1))
	want := []string{"kubepace_admission_decisions_total half=mutate mode=enforce reason=namespace-default 1"}
	if diff := cmp.Diff(want, counters(t, registry)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A namespace that the informer has not seen yet is read from the API server; other errors are not hidden.
func TestNamespaceReader(t *testing.T) {
	notFound := apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "team")
	broken := errors.New("broken")
	found := func(labels map[string]string) readerFunc {
		return func(o *metav1.PartialObjectMetadata) error { o.Labels = labels; return nil }
	}
	failing := func(err error) readerFunc { return func(*metav1.PartialObjectMetadata) error { return err } }
	tests := []struct {
		name        string
		cache, live readerFunc
		want        string
		err         error
	}{
		{"cached", found(map[string]string{"a": "cached"}), failing(broken), "cached", nil},
		{"just created", failing(notFound), found(map[string]string{"a": "live"}), "live", nil},
		{"gone", failing(notFound), failing(notFound), "", notFound},
		{"cache broken", failing(broken), found(nil), "", broken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			labels, err := (&NamespaceReader{Cache: tt.cache, Live: tt.live}).Labels(t.Context(), "team")
			if labels["a"] != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v", labels, err)
			}
		})
	}
}

type readerFunc func(*metav1.PartialObjectMetadata) error

func (f readerFunc) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	return f(o.(*metav1.PartialObjectMetadata))
}

func (readerFunc) List(context.Context, client.ObjectList, ...client.ListOption) error {
	panic("not used")
}

// A patched pod sent through again needs no patch: reinvocationPolicy IfNeeded.
func TestReinvocationChangesNothing(t *testing.T) {
	w := post(newMux(nil)[PathMutatePods], review("CREATE", "team",
		pod(`{"kubernetes.io/egress-bandwidth":"50M","egress.kubepace.io/requested":"1G","egress.kubepace.io/source":"capped"}`), ""))
	if got := response(t, w); strings.Contains(got, "patch") || !strings.Contains(got, `"allowed":true`) {
		t.Error(got)
	}
}
