// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Balancer stands for a Service: new connections go to ready replicas in turn, and stay where they are until one end
// closes them, whatever becomes of the replica's readiness. It dials once, as kube-proxy does.
type Balancer struct {
	URL string // https://

	listener net.Listener
	replicas []*Replica
	done     chan struct{}
	work     sync.WaitGroup

	mu    sync.Mutex
	ready []string
	turn  int
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
		done: make(chan struct{}), conns: map[net.Conn]bool{},
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
	b.mu.Lock()
	if len(b.ready) == 0 {
		b.mu.Unlock()
		return
	}
	address := b.ready[b.turn%len(b.ready)]
	b.turn++
	b.mu.Unlock()
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
	for _, way := range [][2]net.Conn{{back, front}, {front, back}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			// A half that is over is passed on as such.
			_ = way[0].(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
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
