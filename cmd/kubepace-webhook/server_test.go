// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/go-logr/logr"
	certutil "k8s.io/client-go/util/cert"
)

// serving starts a server with one handler; stop ends it and returns what Start did.
func serving(t *testing.T, idle time.Duration, handler http.HandlerFunc) (s *server, stop func() error) {
	t.Helper()
	cert, key, err := certutil.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s = newServer(&options{ListenAddress: "127.0.0.1"}, logr.Discard(), func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} })
	s.idle = idle
	s.Register("/review", handler)
	check := s.StartedChecker()
	if err := check(newRequest(t, "")); err == nil {
		t.Error("started before Start")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Start(ctx) }()
	for began := time.Now(); check(newRequest(t, "")) != nil; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal(check(newRequest(t, "")))
		}
	}
	return s, func() error {
		cancel()
		return <-done
	}
}

func newRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// call posts by the protocol, and returns which it was and what came.
func (s *server) call(t *testing.T, protocol string) (string, string) {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}},
		ForceAttemptHTTP2: protocol == "h2",
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(newRequest(t, "https://"+s.listening.Load().String()+"/review"))
	if err != nil {
		t.Errorf("%s: %v", protocol, err)
		return "", ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.Proto, string(text)
}

// TestServer: API servers call by HTTP/1.1 behind a Service, and by HTTP/2 at loopback. What was asked at the end is answered.
func TestServer(t *testing.T) {
	asked, answer := make(chan struct{}, 3), make(chan struct{}, 3)
	s, stop := serving(t, idleTimeout, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-answer
		if r.Context().Err() == nil {
			_, _ = io.WriteString(w, "allowed")
		}
	})
	answer <- struct{}{}
	answer <- struct{}{}
	for protocol, want := range map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2.0"} {
		if got, text := s.call(t, protocol); got != want || text != "allowed" {
			t.Errorf("%s: %q by %s; want %q by %s", protocol, text, got, "allowed", want)
		}
		<-asked
	}
	last := make(chan string, 1)
	go func() {
		_, text := s.call(t, "http/1.1")
		last <- text
	}()
	<-asked
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	select {
	case err := <-ended:
		t.Fatalf("ended with %v before it had answered", err)
	case <-time.After(50 * time.Millisecond):
	}
	answer <- struct{}{}
	if text := <-last; text != "allowed" {
		t.Errorf("the last call got %q", text)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestServerThatCannotListen says so.
func TestServerThatCannotListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	if err := newServer(&options{ListenAddress: "127.0.0.1", Port: port}, logr.Discard(), func(*tls.Config) {}).Start(t.Context()); err == nil {
		t.Error("listens where another does")
	}
}

// TestIdleConnections are given up by the caller, who knows then that no review is on its way: client-go's transport does it
// after as long as http.DefaultTransport.
func TestIdleConnections(t *testing.T) {
	if callers := http.DefaultTransport.(*http.Transport).IdleConnTimeout; idleTimeout < 2*callers {
		t.Errorf("idle connections are closed after %v, callers give them up after %v", idleTimeout, callers)
	}
	for _, test := range []struct {
		idle   time.Duration
		closed bool
		within time.Duration
	}{{10 * time.Millisecond, true, 10 * time.Second}, {idleTimeout, false, 200 * time.Millisecond}} {
		s, stop := serving(t, test.idle, func(http.ResponseWriter, *http.Request) {})
		conn, err := tls.Dial("tcp", s.listening.Load().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST /review HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(test.within)); err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, conn)
		if closed := err == nil; closed != test.closed {
			t.Errorf("idle for %v: closed %v (%v); want %v", test.idle, closed, err, test.closed)
		}
		conn.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}
