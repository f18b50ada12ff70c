// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/kubepace/kubepace/webhook"
)

// drain returns a context that outlives stop by the delay, and a flag that is true during it: not ready any more, but
// answering, until everybody has heard that this replica goes.
func drain(stop context.Context, delay time.Duration, begin func()) (context.Context, *atomic.Bool) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop))
	draining := &atomic.Bool{}
	context.AfterFunc(stop, func() {
		draining.Store(true)
		begin()
		time.AfterFunc(delay, cancel)
	})
	return ctx, draining
}

// movingOn registers handlers that, while draining, ask callers to move on. A Service that drops this replica moves only
// new connections, and API servers keep theirs for as long as they work. `Connection: close`, which net/http sends as GOAWAY
// by HTTP/2, ends them: calls under way are answered, and the caller's next one opens a connection, to a replica that stays.
type movingOn struct {
	webhook.Server
	draining *atomic.Bool
}

// Register implements webhook.Server.
func (m movingOn) Register(path string, handler http.Handler) {
	m.Server.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	}))
}
