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
type verdictFunc[T any] func(context.Context, *request[T]) (admission.Response, error)

// endpoint is the HTTP handler of one path. controller-runtime's own answers every review with HTTP 200, which the API
// server takes for a refusal, whatever the webhook's failurePolicy says; and it decodes a review twice (review.go).
type endpoint[T any] struct {
	path    string
	judge   verdictFunc[T]
	metrics *Metrics
}

func newEndpoint[T any](path string, judge verdictFunc[T], metrics *Metrics) http.Handler {
	return &endpoint[T]{path: path, judge: judge, metrics: metrics}
}

// ServeHTTP implements http.Handler.
func (e *endpoint[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer []byte
	err := withBody(w, r, func(body []byte) (err error) {
		answer, err = e.try(r.Context(), body)
		return err
	})
	if err != nil {
		e.metrics.failed(e.path)
		log.Log.WithName("admission").Error(err, "review failed", "path", e.path)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here means that the API server hung up; there is nobody left to tell.
	_, _ = w.Write(answer)
}

// try goes from bytes to bytes. It turns a panic into an error, with its stack in the log.
func (e *endpoint[T]) try(ctx context.Context, body []byte) (answer []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("judge review: panic: %v", r)
			log.FromContext(ctx).Error(err, "panic in handler", "stack", string(debug.Stack()))
		}
	}()
	req, err := decodeReview[T](body)
	if err != nil {
		return nil, err
	}
	response, err := e.judge(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("judge review %s: %w", req.UID, err)
	}
	return encodeReview(req.UID, response)
}
