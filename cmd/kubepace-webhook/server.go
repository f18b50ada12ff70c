// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	crwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

const (
	// idleTimeout is longer than the 90 s after which an API server gives an idle connection up (client-go's). Behind a
	// Service it calls by HTTP/1.1, and a review that it sends into a connection that this side is closing is lost: Go's
	// client repeats no POST. So callers are to close first. controller-runtime's own server closes after 90 s as well.
	idleTimeout = 5 * time.Minute
	// headerTimeout and shutdownTimeout are those of controller-runtime's server.
	headerTimeout   = 32 * time.Second
	shutdownTimeout = time.Minute
)

// server is controller-runtime's webhook server, listening by itself.
type server struct {
	crwebhook.Server // what handlers are registered with
	address          string
	configure        func(*tls.Config)
	idle             time.Duration
	log              logr.Logger
	listening        atomic.Pointer[net.TCPAddr]
}

// newServer does not listen before Start, which calls configure.
func newServer(o *options, log logr.Logger, configure func(*tls.Config)) *server {
	return &server{
		Server: crwebhook.NewServer(crwebhook.Options{}), address: net.JoinHostPort(o.ListenAddress, strconv.Itoa(o.Port)),
		configure: configure, idle: idleTimeout, log: log,
	}
}

// Start implements crwebhook.Server. At the end of ctx it answers what it has been asked.
func (s *server) Start(ctx context.Context) error {
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	s.configure(config)
	if s.WebhookMux() == nil { // http.Server would take its package's
		return errors.New("serve admission: no handler is registered")
	}
	listener, err := tls.Listen("tcp", s.address, config)
	if err != nil {
		return fmt.Errorf("listen for admission: %w", err)
	}
	server := &http.Server{
		Handler: s.WebhookMux(), IdleTimeout: s.idle, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: 1 << 20,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }, // what was asked is answered
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		ended <- server.Shutdown(ctx)
	})
	s.log.Info("serving admission", "address", listener.Addr().String())
	s.listening.Store(listener.Addr().(*net.TCPAddr))
	err = server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		err = <-ended
	} else {
		stop()
	}
	if err != nil {
		return fmt.Errorf("serve admission: %w", err)
	}
	return nil
}

// StartedChecker implements crwebhook.Server: a handshake succeeds.
func (s *server) StartedChecker() healthz.Checker {
	return func(r *http.Request) error {
		address := s.listening.Load()
		if address == nil {
			return errors.New("not listening yet")
		}
		dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it asks itself, whatever name the certificate has
		conn, err := dialer.DialContext(r.Context(), "tcp", address.String())
		if err != nil {
			return fmt.Errorf("admission cannot be reached: %w", err)
		}
		return conn.Close()
	}
}
