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
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNamespaces holds labels by name; a name that is missing is an API failure.
type fakeNamespaces map[string]map[string]string

// Settings gives the namespace "quota" a ResourceQuota as well.
func (f fakeNamespaces) Settings(_ context.Context, name string) (policy.Namespace, error) {
	labels, ok := f[name]
	if !ok {
		return policy.Namespace{}, fmt.Errorf("read namespace %q: connection refused", name)
	}
	ns := policy.Namespace{Name: name, Labels: labels}
	if name == "quota" {
		ns.Quotas = []policy.Quota{{Name: "egress", Counts: true}}
	}
	return ns, nil
}

var namespaces = fakeNamespaces{
	"plain": nil,
	"quota": nil,
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
	panics := newEndpoint("/panics", func(context.Context, *request[object]) (admission.Response, error) {
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
		{"object of another shape", handlers[PathMutatePods], review("CREATE", "team", `{"metadata":[1]}`, ""), "decode review"},
		{"no object", handlers[PathValidatePods], review("CREATE", "team", "null", ""), "holds no object"},
		{"no old object", handlers[PathValidatePods], review("UPDATE", "team", pod(""), ""), "holds no old object"},
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
	greedy := review("CREATE", "team", pod(`{"kubernetes.io/egress-bandwidth":"1G"}`), "")
	post(handlers[PathMutatePods], greedy)
	post(handlers[PathMutatePods], strings.Replace(greedy, `"uid"`, `"dryRun":true,"uid"`, 1))
	want := []string{
		"kubepace_admission_capped_bits_per_second_total namespace=team 9.5e+08",
		"kubepace_admission_decisions_total half=mutate mode=enforce reason=capped 1",
		"kubepace_admission_decisions_total half=mutate mode=enforce reason=namespace-default 1",
	}
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
			ns, err := (&NamespaceReader{Cache: tt.cache, Live: tt.live}).Settings(t.Context(), "team")
			if ns.Labels["a"] != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v", ns, err)
			}
			if err == nil && (len(ns.Ranges) != 1 || len(ns.Quotas) != 1) {
				t.Errorf("ranges %+v, quotas %+v, want one each, from where the labels are", ns.Ranges, ns.Quotas)
			}
		})
	}
}

type readerFunc func(*metav1.PartialObjectMetadata) error

func (f readerFunc) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	return f(o.(*metav1.PartialObjectMetadata))
}

// List finds a LimitRange and a ResourceQuota of ours, each beside one that is none of our business.
func (f readerFunc) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if err := f(&metav1.PartialObjectMetadata{}); err != nil {
		return err
	}
	switch list := list.(type) {
	case *corev1.LimitRangeList:
		list.Items = []corev1.LimitRange{limitRange("ours", corev1.LimitTypePod, bandwidth.Resource), limitRange("cpu", corev1.LimitTypePod, "cpu")}
	case *corev1.ResourceQuotaList:
		list.Items = []corev1.ResourceQuota{quota("ours", bandwidth.QuotaKey), quota("pods", "pods")}
	}
	return nil
}

func limitRange(name string, kind corev1.LimitType, key corev1.ResourceName) corev1.LimitRange {
	lr := corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: kind, Max: corev1.ResourceList{key: resource.MustParse("50M"), "memory": resource.MustParse("1Gi")}},
	}}}
	lr.Name, lr.Namespace, lr.Labels = name, "team", map[string]string{"large": "label"}
	return lr
}

func quota(name string, keys ...corev1.ResourceName) corev1.ResourceQuota {
	q := corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}}
	q.Name, q.Namespace = name, "team"
	for _, key := range keys {
		q.Spec.Hard[key] = resource.MustParse("1G")
	}
	return q
}

// TestSettingsCache: what the caches hold says the same to the policy as the whole object, and holds nothing else.
func TestSettingsCache(t *testing.T) {
	ours, cpu := limitRange("ours", corev1.LimitTypePod, bandwidth.Resource), limitRange("cpu", corev1.LimitTypePod, "cpu")
	for _, lr := range []corev1.LimitRange{ours, cpu, limitRange("odd", corev1.LimitTypeContainer, bandwidth.Resource)} {
		small, err := trimLimitRange(&lr)
		if err != nil {
			t.Fatal(err)
		}
		trimmed := small.(*corev1.LimitRange)
		if diff := cmp.Diff(rangesOf(&lr), rangesOf(trimmed)); diff != "" {
			t.Errorf("%s (-whole +trimmed):\n%s", lr.Name, diff)
		}
		if text := fmt.Sprint(trimmed); strings.Contains(text, "memory") || strings.Contains(text, "large") || trimmed.Name != lr.Name {
			t.Errorf("kept %s", text)
		}
	}
	if got := rangesOf(&cpu); len(got) != 0 {
		t.Errorf("ranges %+v of a LimitRange that does not name us", got)
	}
	for name, tt := range map[string]struct {
		quota  corev1.ResourceQuota
		scopes []corev1.ResourceQuotaScope
		want   policy.Quota
		ok     bool
	}{
		"counts":      {quota("q", bandwidth.QuotaKey), nil, policy.Quota{Name: "q", Counts: true}, true},
		"never":       {quota("q", "limits."+bandwidth.Resource, bandwidth.Resource), nil, policy.Quota{Name: "q", Others: []string{bandwidth.Resource, "limits." + bandwidth.Resource}}, true},
		"best effort": {quota("q", bandwidth.QuotaKey), []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}, policy.Quota{Name: "q", Others: []string{bandwidth.QuotaKey + " in scope BestEffort"}}, true},
		"others'":     {quota("q", "pods"), nil, policy.Quota{Name: "q"}, false},
	} {
		tt.quota.Spec.Scopes = tt.scopes
		small, err := trimQuota(&tt.quota)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []*corev1.ResourceQuota{&tt.quota, small.(*corev1.ResourceQuota)} {
			if got, ok := quotaOf(q); ok != tt.ok || !cmp.Equal(got, tt.want) {
				t.Errorf("%s: %+v, %v, want %+v", name, got, ok, tt.want)
			}
		}
		if len(small.(*corev1.ResourceQuota).Spec.Hard) > 2 {
			t.Errorf("%s: kept %v", name, small)
		}
	}
}

// podWith writes a pod with these containers and init containers.
func podWith(containers, inits string) string {
	return `{"metadata":{"name":"web","annotations":{"kubernetes.io/egress-bandwidth":"10M","egress.kubepace.io/source":"pod"}},"spec":{"containers":[` + containers + `],"initContainers":[` + inits + `]}}`
}

// TestContainerPatches: the patch makes the maps that are missing and names no key but ours.
func TestContainerPatches(t *testing.T) {
	const at = `/spec/containers/0/resources`
	for name, tt := range map[string]struct{ namespace, containers, inits, want string }{
		"no resources": {"quota", `{"name":"a"}`, ``,
			`[{"op":"add","path":"` + at + `","value":{"limits":{"kubepace.io/egress-bandwidth":"10M"},"requests":{"kubepace.io/egress-bandwidth":"10M"}}}]`},
		"empty resources": {"quota", `{"resources":{}}`, ``,
			`[{"op":"add","path":"` + at + `/requests","value":{"kubepace.io/egress-bandwidth":"10M"}},{"op":"add","path":"` + at + `/limits","value":{"kubepace.io/egress-bandwidth":"10M"}}]`},
		"others'": {"quota", `{"resources":{"requests":{"cpu":"1"},"limits":{"cpu":"1"}}}`, ``,
			`[{"op":"add","path":"` + at + `/requests/kubepace.io~1egress-bandwidth","value":"10M"},{"op":"add","path":"` + at + `/limits/kubepace.io~1egress-bandwidth","value":"10M"}]`},
		"another amount": {"quota", `{"resources":{"requests":{"kubepace.io/egress-bandwidth":"1M"},"limits":{"kubepace.io/egress-bandwidth":"1M"}}}`, ``,
			`[{"op":"replace","path":"` + at + `/requests/kubepace.io~1egress-bandwidth","value":"10M"},{"op":"replace","path":"` + at + `/limits/kubepace.io~1egress-bandwidth","value":"10M"}]`},
		"a number": {"quota", `{"resources":{"requests":{"kubepace.io/egress-bandwidth":10000000},"limits":{"kubepace.io/egress-bandwidth":1e7}}}`, ``, ``},
		"null": {"quota", `{"resources":{"requests":{"kubepace.io/egress-bandwidth":null},"limits":{"kubepace.io/egress-bandwidth":"10M"}}}`, ``,
			`[{"op":"add","path":"` + at + `/requests/kubepace.io~1egress-bandwidth","value":"10M"},{"op":"replace","path":"` + at + `/limits/kubepace.io~1egress-bandwidth","value":"10M"}]`},
		"only once": {"quota", `{"resources":{"limits":{"kubepace.io/egress-bandwidth":"10M"},"requests":{"kubepace.io/egress-bandwidth":"10M"}}}`, `{"resources":{"limits":{"kubepace.io/egress-bandwidth":"10M"}}}`,
			`[{"op":"remove","path":"/spec/initContainers/0/resources/limits/kubepace.io~1egress-bandwidth"}]`},
		"nothing counts": {"plain", `{"resources":{"limits":{"kubepace.io/egress-bandwidth":"10M"},"requests":{"kubepace.io/egress-bandwidth":"10M"}}}`, ``,
			`[{"op":"remove","path":"` + at + `/requests/kubepace.io~1egress-bandwidth"},{"op":"remove","path":"` + at + `/limits/kubepace.io~1egress-bandwidth"}]`},
		"nothing to do": {"plain", `{"resources":{"limits":{"cpu":"1"}}}`, ``, ``},
	} {
		t.Run(name, func(t *testing.T) {
			w := post(newMux(nil)[PathMutatePods], review("CREATE", tt.namespace, podWith(tt.containers, tt.inits), ""))
			var out admissionv1.AdmissionReview
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || !out.Response.Allowed {
				t.Fatalf("%v: %s", err, w.Body)
			}
			var got, want any
			if len(out.Response.Patch) > 0 {
				mustDecode(t, out.Response.Patch, &got)
			}
			if tt.want != "" {
				mustDecode(t, []byte(tt.want), &want)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
		})
	}
}

func mustDecode(t *testing.T, raw []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
}

// TestRaisedAboveTheCount: a running pod, by the update of its annotation.
func TestRaisedAboveTheCount(t *testing.T) {
	counted := `{"resources":{"limits":{"kubepace.io/egress-bandwidth":"10M"},"requests":{"kubepace.io/egress-bandwidth":"10M"}}}`
	old := podWith(counted, "")
	raised := strings.Replace(old, `"10M"`, `"11M"`, 1)
	for path, h := range newMux(nil) {
		if path != PathMutatePods && path != PathValidatePods {
			continue
		}
		got := response(t, post(h, review("UPDATE", "quota", raised, old)))
		if !strings.Contains(got, "is above 10M, what the pod is counted with") || strings.Contains(got, `"allowed":true`) {
			t.Errorf("%s: %s", path, got)
		}
	}
}

// A patched pod sent through again needs no patch: reinvocationPolicy IfNeeded.
func TestReinvocationChangesNothing(t *testing.T) {
	w := post(newMux(nil)[PathMutatePods], review("CREATE", "team",
		pod(`{"kubernetes.io/egress-bandwidth":"50M","egress.kubepace.io/requested":"1G","egress.kubepace.io/source":"capped"}`), ""))
	if got := response(t, w); strings.Contains(got, "patch") || !strings.Contains(got, `"allowed":true`) {
		t.Error(got)
	}
}
