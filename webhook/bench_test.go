// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// BenchmarkMutatePod is one review of a pod with ten containers, about 8 KB, from bytes to bytes: HTTP and TLS left out.
func BenchmarkMutatePod(b *testing.B) {
	var containers []string
	for i := range 10 {
		containers = append(containers, fmt.Sprintf(`{"name":"c%d","image":"example.com/team/app:%d","env":[%s],"resources":{"requests":{"cpu":"100m","memory":"64Mi"}},`+
			`"volumeMounts":[{"name":"data","mountPath":"/data"}],"livenessProbe":{"httpGet":{"path":"/healthz","port":8080}}}`,
			i, i, strings.TrimSuffix(strings.Repeat(`{"name":"SETTING","value":"some text of the usual length"},`, 9), ",")))
	}
	object := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","annotations":{"kubernetes.io/egress-bandwidth":"1G"}},"spec":{"containers":[` +
		strings.Join(containers, ",") + `]}}`
	body := review("CREATE", "team", object, "")
	h := newMux(nil)[PathMutatePods]
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
