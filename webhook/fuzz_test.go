// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/webhook/policy"
)

// FuzzReview feeds raw bytes to every endpoint. Whatever comes, the answer is a review or an HTTP error, and a patch
// names our annotations only.
func FuzzReview(f *testing.F) {
	for _, object := range []string{
		pod(""), pod(`{}`), pod(`null`), pod(`{"kubernetes.io/egress-bandwidth":"1G"}`), pod(mirrorPod), hostPod, dyingPod, binding,
		`{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":"10 megabits"}}}`, `{"metadata":7}`, `null`,
	} {
		f.Add([]byte(review("CREATE", "team", object, "")))
		f.Add([]byte(review("UPDATE", "deny", object, pod(""))))
		f.Add([]byte(review("CREATE", "quota", object, "")))
	}
	carrying := podWith(`{},{"resources":{"requests":{"kubepace.io/egress-bandwidth":7}}}`, `{"resources":{"limits":{"kubepace.io/egress-bandwidth":"9E"}}}`)
	f.Add([]byte(review("CREATE", "quota", carrying, "")))
	f.Add([]byte(review("UPDATE", "quota", carrying, pod(""))))
	f.Add([]byte(`{"kind":"AdmissionReview"}`))
	handlers := newMux(nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		for path, h := range handlers {
			w := post(h, string(body))
			if w.Code == http.StatusInternalServerError {
				if strings.Contains(w.Body.String(), "panic") && !strings.Contains(string(body), "panic") {
					t.Fatalf("%s: %s", path, w.Body)
				}
				continue
			}
			requireReview(t, w.Body.Bytes())
		}
	})
}

func requireReview(t *testing.T, body []byte) {
	t.Helper()
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &out); err != nil || out.Response == nil {
		t.Fatalf("%v: %s", err, body)
	}
	if out.Response.Patch == nil {
		return
	}
	var ops []jsonpatch.JsonPatchOperation
	if err := json.Unmarshal(out.Response.Patch, &ops); err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		for _, key := range touched(op) {
			if !slices.Contains(policy.Keys, key) && key != bandwidth.Resource {
				t.Fatalf("patch touches %q: %s", key, out.Response.Patch)
			}
		}
	}
}

// touched are the keys of annotations and resources that an operation names.
func touched(op jsonpatch.JsonPatchOperation) []string {
	var keys func(value any) []string
	keys = func(value any) []string {
		var out []string
		for key, inner := range value.(map[string]any) {
			if key == "requests" || key == "limits" {
				out = append(out, keys(inner)...)
			} else {
				out = append(out, key)
			}
		}
		return out
	}
	if _, ok := op.Value.(map[string]any); ok {
		return keys(op.Value)
	}
	key := op.Path[strings.LastIndex(op.Path, "/")+1:]
	return []string{strings.NewReplacer("~1", "/", "~0", "~").Replace(key)}
}
