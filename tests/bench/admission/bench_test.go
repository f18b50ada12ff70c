// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseBenchmarks(t *testing.T) {
	got, err := parseBenchmarks("goos: linux\nBenchmarkMutatePod \t   10000\t    125000 ns/op\t  64.00 MB/s\t   31000 B/op\t     200 allocs/op\nPASS\n")
	want := []Handler{{"MutatePod", 8000, 125000, 31000, 200}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if _, err := parseBenchmarks("PASS\n"); err == nil {
		t.Error("no benchmark is fine")
	}
}

func TestQuantile(t *testing.T) {
	s := sample{latencies: []float64{4, 1, 3, 2}, took: 2 * time.Second}
	if s.quantile(0.5) != 2 || s.quantile(0.99) != 4 || s.quantile(0) != 1 || s.rate() != 2 || quantile(nil, 0.5) != 0 {
		t.Errorf("%v %v %v %v", s.quantile(0.5), s.quantile(0.99), s.quantile(0), s.rate())
	}
	if got := added([]float64{5, 9, 7}, []float64{4, 6, 5}); got != 2 {
		t.Errorf("added %v", got)
	}
}

func TestGauge(t *testing.T) {
	text := "# HELP go_x y\ngo_xx 1\ngo_x 1.5e+06\n"
	if got, err := gauge(text, "go_x"); err != nil || got != 1.5e6 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := gauge(text, "go"); err == nil {
		t.Error("found what is not there")
	}
}

// The documentation gets a claim that is not met as such, and only what is between the marks changes.
func TestDocumentation(t *testing.T) {
	r := &Result{Plan: brief, Handlers: []Handler{{Name: "MutatePod", ReviewsPerSecond: 4999}}}
	for _, k := range podKinds {
		for i, v := range variants {
			ms := []float64{1 + 0.6*float64(i)}
			r.Series = append(r.Series, &Series{k.Name, v, ms, ms, ms, ms, ms, ms})
		}
	}
	file := filepath.Join(t.TempDir(), "benchmarks.md")
	for range 2 {
		if err := replaceSection(file, r.markdown()); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"one client: unremarkable | 1.80 ms | ≤ 1.5 ms | **not met** |", "one client: capped | 1.80 ms | ≤ 2.5 ms | met |",
		"nothing but answer, in the same rounds: capped | 0.60 ms | | |",
		"| handler MutatePod, ten containers, one core | 4999 reviews/s | ≥ 5000 | **not met** |",
		"| capped | CEL | 2.20, 2.20 | +1.20, +1.20 | 2 |", "# Benchmarks of admission\n",
	} {
		if strings.Count(string(content), want) != 1 {
			t.Errorf("not once: %s\n%s", want, content)
		}
	}
	if err := os.WriteFile(file, []byte("no marks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if replaceSection(file, "x") == nil {
		t.Error("a document without marks is overwritten")
	}
}

// What does nothing caps as well: otherwise the API server would have less to do.
func TestReply(t *testing.T) {
	for _, test := range []struct{ path, namespace, want string }{
		{"/mutate", "bounded", `"patchType":"JSONPatch"`},
		{"/mutate", "plain", `"allowed":true}}`},
		{"/validate", "bounded", `"allowed":true}}`},
	} {
		body := `{"kind":"AdmissionReview","request":{"uid":"the-request","namespace":"` + test.namespace + `","object":{"metadata":{"uid":"other"}}}}`
		w := httptest.NewRecorder()
		reply(w, httptest.NewRequest(http.MethodPost, test.path, strings.NewReader(body)))
		if got := w.Body.String(); w.Code != 200 || !json.Valid(w.Body.Bytes()) || !strings.Contains(got, `"uid":"the-request"`) || !strings.Contains(got, test.want) {
			t.Errorf("%s of %s: %d %s; want %s", test.path, test.namespace, w.Code, got, test.want)
		}
	}
	w := httptest.NewRecorder()
	if reply(w, httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader("x"))); w.Code != 400 {
		t.Errorf("%d for no review", w.Code)
	}
}
