// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"

	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// verdictFunc judges a request. An error is no verdict: failurePolicy decides.
type verdictFunc func(context.Context, admission.Request) (admission.Response, error)

// failure carries an error from the admission.Handler to the HTTP handler around it: controller-runtime answers every
// review with HTTP 200, which the API server takes for a refusal, whatever the webhook's failurePolicy says.
type failure struct{ err error }

type failureKey struct{}

// handler adapts a verdictFunc to admission.Handler.
type handler struct{ judge verdictFunc }

var _ admission.Handler = handler{}

// Handle implements admission.Handler.
func (h handler) Handle(ctx context.Context, req admission.Request) (resp admission.Response) {
	err := h.try(ctx, req, &resp)
	if err == nil {
		return resp
	}
	if f, ok := ctx.Value(failureKey{}).(*failure); ok {
		f.err = err
	}
	return admission.Errored(http.StatusInternalServerError, err)
}

// try turns a panic into an error, with its stack in the log.
func (h handler) try(ctx context.Context, req admission.Request, resp *admission.Response) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("judge review %s: panic: %v", req.UID, r)
			log.FromContext(ctx).Error(err, "panic in handler", "stack", string(debug.Stack()))
		}
	}()
	*resp, err = h.judge(ctx, req)
	return err
}

// endpoint is the HTTP handler of one path. The embedded webhook limits the body to 7 MiB.
type endpoint struct {
	path    string
	webhook *admission.Webhook
	metrics *Metrics
}

func newEndpoint(path string, judge verdictFunc, metrics *Metrics) *endpoint {
	return &endpoint{path: path, webhook: &admission.Webhook{Handler: handler{judge}}, metrics: metrics}
}

// ServeHTTP implements http.Handler.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := &failure{}
	buffered := &responseBuffer{header: http.Header{}}
	e.webhook.ServeHTTP(buffered, r.WithContext(context.WithValue(r.Context(), failureKey{}, f)))
	if f.err != nil {
		e.metrics.failed(e.path)
		log.Log.WithName("admission").Error(f.err, "review failed", "path", e.path)
		http.Error(w, f.err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here means that the API server hung up; there is nobody left to tell.
	_, _ = w.Write(buffered.body)
}

// responseBuffer holds a response back until it is known to be a verdict.
type responseBuffer struct {
	header http.Header
	body   []byte
}

func (b *responseBuffer) Header() http.Header { return b.header }

func (b *responseBuffer) WriteHeader(int) {}

func (b *responseBuffer) Write(p []byte) (int, error) {
	b.body = append(b.body, p...)
	return len(p), nil
}
