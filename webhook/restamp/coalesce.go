// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"bufio"
	"io"
	"net/http"
	"sync"
	"time"
)

// between is how often the watch of pods is read, at most. Each event by itself wakes half a dozen goroutines, and a busy
// cluster has thousands of them for each that concerns us: read together they cost half. A pod rests for longer than this
// before it is acted on.
const between = 100 * time.Millisecond

// fill is how much is read at once, in bytes. While the stream has as much, nothing waits.
const fill = 64 << 10

// CoalesceWatch reads watches of pods in portions; all other requests go through it as they are. So do watches that do not
// come by HTTP/2: there a read returns a few KB however much has arrived. It is for rest.Config.Wrap.
func CoalesceWatch(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err == nil && response.ProtoMajor >= 2 && r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("watch") == "true" {
			response.Body = coalesce(response.Body, between)
		}
		return response, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// portions is a stream that is read in portions.
type portions struct {
	body   io.ReadCloser
	buffer *bufio.Reader
	every  time.Duration
	next   time.Time // when to read again
	once   sync.Once
	closed chan struct{}
}

func coalesce(body io.ReadCloser, every time.Duration) *portions {
	return &portions{body: body, buffer: bufio.NewReaderSize(body, fill), every: every, closed: make(chan struct{})}
}

// Read implements io.Reader.
func (p *portions) Read(b []byte) (int, error) {
	if p.buffer.Buffered() == 0 {
		select {
		case <-time.After(time.Until(p.next)):
		case <-p.closed: // what the body says of that
		}
		if _, err := p.buffer.Peek(1); err != nil {
			return 0, err
		}
		if p.next = time.Now().Add(p.every); p.buffer.Buffered() == fill {
			p.next = time.Time{} // there may be more
		}
	}
	return p.buffer.Read(b)
}

// Close implements io.Closer.
func (p *portions) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.body.Close()
}
