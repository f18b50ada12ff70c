// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// stream has what was put there, returns as much of it at once as fits, and counts how often it was asked.
type stream struct {
	arrived chan []byte
	rest    []byte
	reads   int
	closed  chan struct{}
}

var errClosed = errors.New("closed")

func newStream() *stream {
	return &stream{arrived: make(chan []byte, 1000), closed: make(chan struct{})}
}

func (s *stream) Read(b []byte) (int, error) {
	s.reads++
	if len(s.rest) == 0 {
		select {
		case more, ok := <-s.arrived:
			if !ok {
				return 0, io.EOF
			}
			s.rest = more
		case <-s.closed:
			return 0, errClosed
		}
	}
	for len(s.rest) < len(b) && len(s.arrived) > 0 {
		s.rest = append(s.rest, <-s.arrived...)
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *stream) Close() error {
	close(s.closed)
	return nil
}

// Two hundred events in two seconds are read in some twenty portions, none late by more than one; nothing is lost.
func TestPortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream()
		go func() {
			for i := range 200 {
				s.arrived <- []byte{byte(i)}
				time.Sleep(10 * time.Millisecond)
			}
			close(s.arrived)
		}()
		p, began, buffer := coalesce(s, between), time.Now(), make([]byte, 1)
		for i := range 200 {
			if n, err := p.Read(buffer); n != 1 || err != nil || buffer[0] != byte(i) {
				t.Fatalf("event %d: %d bytes (%v), %d", i, n, err, buffer)
			}
			if late := time.Since(began) - time.Duration(i)*10*time.Millisecond; late < 0 || late > between {
				t.Fatalf("event %d came %s late", i, late)
			}
		}
		if n, err := p.Read(buffer); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %d bytes (%v)", n, err)
		}
		if s.reads > 22 {
			t.Errorf("the stream was read %d times", s.reads)
		}
	})
}

// A list of many megabytes, as after an outage, is not slowed down.
func TestPortionsOfMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, want := newStream(), bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
		s.arrived <- want
		close(s.arrived)
		began := time.Now()
		got, err := io.ReadAll(coalesce(s, between))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes (%v)", len(got), len(want), err)
		}
		if took := time.Since(began); took > between {
			t.Errorf("it took %s", took)
		}
	})
}

// A watch that is given up between two portions ends at once.
func TestPortionsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream()
		s.arrived <- []byte("x")
		p, buffer := coalesce(s, time.Hour), make([]byte, 10)
		if n, err := p.Read(buffer); n != 1 || err != nil {
			t.Fatalf("%d bytes (%v)", n, err)
		}
		began := time.Now()
		time.AfterFunc(time.Second, func() { _ = p.Close() })
		if n, err := p.Read(buffer); n != 0 || !errors.Is(err, errClosed) {
			t.Errorf("%d bytes (%v)", n, err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestCoalesceWatch(t *testing.T) {
	for target, want := range map[string]bool{
		"/api/v1/pods?allowWatchBookmarks=true&watch=true":        true,
		"/api/v1/pods?limit=500":                                  false,
		"/api/v1/namespaces?watch=true":                           false,
		"/api/v1/namespaces/team-a/pods?watch=true":               false,
		"/api/v1/pods?allowWatchBookmarks=true&watch=true&http=1": false,
	} {
		r := httptest.NewRequest(http.MethodGet, "https://server.example"+target, nil)
		answer := &http.Response{ProtoMajor: 2, Body: newStream()}
		if r.URL.Query().Has("http") {
			answer.ProtoMajor = 1
		}
		got, err := CoalesceWatch(roundTripper(func(*http.Request) (*http.Response, error) { return answer, nil })).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := got.Body.(*portions); is != want {
			t.Errorf("%s: in portions: %t, want %t", target, is, want)
		}
	}
	failure := errors.New("no connection")
	r := httptest.NewRequest(http.MethodGet, "https://server.example/api/v1/pods?watch=true", nil)
	if _, err := CoalesceWatch(roundTripper(func(*http.Request) (*http.Response, error) { return nil, failure })).RoundTrip(r); !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
}
