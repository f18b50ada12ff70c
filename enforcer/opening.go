// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/kubepace/kubepace/enforcer/datapath"
)

// NotOpenError means that the datapath could not be opened: this agent can set nothing on this node.
type NotOpenError struct {
	Err error
	// Left is what an earlier agent left in the kernel, and what stays in force, as far as that can be seen.
	Left []datapath.State
}

func (e *NotOpenError) Error() string { return "no limit can be set on this node: " + e.Err.Error() }

func (e *NotOpenError) Unwrap() error { return e.Err }

// Opening is a datapath that is opened when it is asked for its states, again and again where that fails: the agent of
// a node that cannot enforce says so to everybody, instead of ending and leaving them to guess.
type Opening struct {
	// Open opens it. It is not called any more once it has succeeded.
	Open func() (*datapath.Datapath, error)
	// Left reads what is in force all the same, where Open fails. Optional.
	Left func() ([]datapath.State, error)

	mu   sync.Mutex
	open *datapath.Datapath
}

var _ Datapath = (*Opening)(nil)

func (o *Opening) get() (*datapath.Datapath, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == nil {
		return nil, &NotOpenError{Err: errors.New("not opened yet")}
	}
	return o.open, nil
}

// States opens the datapath where it is not open yet. The error is a *NotOpenError where that fails.
func (o *Opening) States() ([]datapath.State, error) {
	d, err := o.opened()
	if err != nil {
		return nil, err
	}
	return d.States()
}

// Known opens the datapath where it is not open yet, as States does.
func (o *Opening) Known() ([]datapath.State, error) {
	d, err := o.opened()
	if err != nil {
		return nil, err
	}
	return d.Known()
}

func (o *Opening) opened() (*datapath.Datapath, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == nil {
		d, err := o.Open()
		if err != nil {
			return nil, o.failed(err)
		}
		o.open = d
	}
	return o.open, nil
}

func (o *Opening) failed(err error) error {
	e := &NotOpenError{Err: fmt.Errorf("open datapath: %w", err)}
	if o.Left == nil {
		return e
	}
	if left, err := o.Left(); err == nil { // where even that fails, nothing can be said of it
		e.Left = left
	}
	return e
}

// Set implements Datapath.
func (o *Opening) Set(limit datapath.Limit) error {
	d, err := o.get()
	if err != nil {
		return err
	}
	return d.Set(limit)
}

// Remove implements Datapath.
func (o *Opening) Remove(uid string) error {
	d, err := o.get()
	if err != nil {
		return err
	}
	return d.Remove(uid)
}

// Features implements Datapath; those of one that is not open are none.
func (o *Opening) Features() datapath.Features {
	d, err := o.get()
	if err != nil {
		return datapath.Features{}
	}
	return d.Features()
}

// Disturbed implements Datapath.
func (o *Opening) Disturbed() bool {
	d, err := o.get()
	return err == nil && d.Disturbed()
}

// Repairs implements Datapath.
func (o *Opening) Repairs() []datapath.Repair {
	d, err := o.get()
	if err != nil {
		return nil
	}
	return d.Repairs()
}

// Early implements Datapath.
func (o *Opening) Early(ifindex int) (attach func()) {
	d, err := o.get()
	if err != nil {
		return nil
	}
	return d.Early(ifindex)
}

// Expect implements Datapath.
func (o *Opening) Expect(pods int) error {
	d, err := o.get()
	if err != nil {
		return err
	}
	return d.Expect(pods)
}

// Close lets go of file descriptors; every limit stays in force.
func (o *Opening) Close() error {
	d, err := o.get()
	if err != nil {
		return nil //nolint:nilerr // what was never opened is closed
	}
	return d.Close()
}
