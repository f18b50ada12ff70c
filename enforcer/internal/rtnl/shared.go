// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"sync"

	"github.com/vishvananda/netns"
)

// Shared is a connection for several goroutines, to one network namespace. The one that stays open is one question's from its
// start to its answer, which may wait for the kernel's lock of all network configuration: who comes meanwhile gets one that
// ends with the question.
type Shared struct {
	ns netns.NsHandle

	asking sync.Mutex // held by who uses conn
	conn   *Conn
}

// Share opens the connection that stays. The namespace is the caller's to close, after the last question.
func Share(ns netns.NsHandle) (*Shared, error) {
	c, err := Dial(ns)
	if err != nil {
		return nil, err
	}
	return &Shared{ns: ns, conn: c}, nil
}

// Ask lends a connection.
func (s *Shared) Ask(question func(*Conn) error) error {
	if s.asking.TryLock() {
		defer s.asking.Unlock()
		return question(s.conn)
	}
	c, err := Dial(s.ns)
	if err != nil {
		return err
	}
	defer c.Close()
	return question(c)
}

// Close lets go of the connection that stays.
func (s *Shared) Close() { s.conn.Close() }
