// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"

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
	}
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
		var keys []string
		if value, ok := op.Value.(map[string]any); ok && op.Path == annotationsPath {
			for key := range value {
				keys = append(keys, key)
			}
		} else {
			key := strings.NewReplacer("~1", "/", "~0", "~").Replace(strings.TrimPrefix(op.Path, annotationsPath+"/"))
			keys = append(keys, key)
		}
		for _, key := range keys {
			if !strings.Contains(strings.Join(policy.Keys, " "), key) {
				t.Fatalf("patch touches %q: %s", key, out.Response.Patch)
			}
		}
	}
}
