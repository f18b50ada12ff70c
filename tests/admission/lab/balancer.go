// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Balancer stands for a Service: a new connection goes to the ready replica that was sent the least so far, and stays
// where it is until one end closes it, whatever becomes of the replica's readiness. It dials once, as kube-proxy does.
// Not in turn: the API server dials a few times at once and uses one of them, so that the turn may never come to all.
type Balancer struct {
	URL string // https://

	listener net.Listener
	replicas []*Replica
	done     chan struct{}
	work     sync.WaitGroup

	mu    sync.Mutex
	ready []string
	sent  map[string]int64 // bytes, by address
	conns map[net.Conn]bool
}

// endpointsDelay is how long the balancer takes to learn of a replica's readiness.
const endpointsDelay = 500 * time.Millisecond

// NewBalancer listens on a free loopback port.
func NewBalancer(replicas ...*Replica) (*Balancer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	b := &Balancer{
		URL: "https://" + l.Addr().String(), listener: l, replicas: replicas,
		done: make(chan struct{}), sent: map[string]int64{}, conns: map[net.Conn]bool{},
	}
	b.work.Go(b.poll)
	b.work.Go(b.accept)
	return b, nil
}

// Close cuts all connections.
func (b *Balancer) Close() {
	close(b.done)
	_ = b.listener.Close()
	b.mu.Lock()
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.work.Wait()
}

// poll is the endpoints controller and kube-proxy in one.
func (b *Balancer) poll() {
	for {
		var ready []string
		for _, r := range b.replicas {
			if r.Ready() {
				ready = append(ready, r.Address)
			}
		}
		b.mu.Lock()
		b.ready = ready
		b.mu.Unlock()
		select {
		case <-b.done:
			return
		case <-time.After(endpointsDelay):
		}
	}
}

// Endpoints are the replicas that get new connections.
func (b *Balancer) Endpoints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ready)
}

func (b *Balancer) accept() {
	for {
		front, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.work.Go(func() { b.serve(front) })
	}
}

func (b *Balancer) serve(front net.Conn) {
	defer front.Close()
	address, ok := b.choose()
	if !ok {
		return
	}
	back, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer back.Close()
	if !b.keep(front, back) {
		return
	}
	defer b.forget(front, back)
	var both sync.WaitGroup
	both.Go(func() { pass(back, io.TeeReader(front, &tally{b, address})) })
	both.Go(func() { pass(front, back) })
	both.Wait()
}

// choose is false where no replica is ready.
func (b *Balancer) choose() (address string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ready) == 0 {
		return "", false
	}
	return slices.MinFunc(b.ready, func(x, y string) int { return cmp.Compare(b.sent[x], b.sent[y]) }), true
}

// pass copies one way of a connection; when it is over, that is passed on as well.
func pass(to net.Conn, from io.Reader) {
	_, _ = io.Copy(to, from)
	_ = to.(*net.TCPConn).CloseWrite()
}

// tally counts what is sent to an address.
type tally struct {
	balancer *Balancer
	address  string
}

func (t *tally) Write(b []byte) (int, error) {
	t.balancer.mu.Lock()
	defer t.balancer.mu.Unlock()
	t.balancer.sent[t.address] += int64(len(b))
	return len(b), nil
}

// keep is false when the balancer is closing.
func (b *Balancer) keep(conns ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.done:
		return false
	default:
	}
	for _, c := range conns {
		b.conns[c] = true
	}
	return true
}

func (b *Balancer) forget(conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		delete(b.conns, c)
	}
}
