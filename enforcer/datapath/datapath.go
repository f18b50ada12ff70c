// SPDX-License-Identifier: Apache-2.0

package datapath

import "errors"

var errNotYet = errors.New("datapath: not written yet")

// Datapath owns the kernel state under one bpffs folder. Its methods may be called from several goroutines.
type Datapath struct{}

// Open loads the program and its maps, or adopts those that an earlier agent pinned, clocks included.
func Open(opts Options) (*Datapath, error) { return nil, errNotYet }

// Set brings one pod to the desired state: allocates its state, attaches the program to its devices, detaches it
// from devices it no longer has, and writes limit and mode without touching the clock. Idempotent; it also repairs
// an attachment that somebody removed.
func (d *Datapath) Set(limit Limit) error { return errNotYet }

// Remove takes a pod's limit away. Removing an unknown pod is no error.
func (d *Datapath) Remove(uid string) error { return errNotYet }

// States returns what the kernel holds, sorted by namespace and name.
func (d *Datapath) States() ([]State, error) { return nil, errNotYet }

// Features of the running kernel.
func (d *Datapath) Features() Features { return Features{} }

// Close lets go of file descriptors; every limit stays in force.
func (d *Datapath) Close() error { return nil }

// Read returns what is pinned under bpffs without an agent. Where nothing is pinned it returns no states and an
// error that wraps os.ErrNotExist.
func Read(bpffs string) ([]State, error) { return nil, errNotYet }

// Probe asks the running kernel what it can do. It needs CAP_BPF and CAP_NET_ADMIN.
func Probe() (Features, error) { return Features{}, errNotYet }

// Cleanup removes every limit, link, filter and pin under bpffs.
func Cleanup(bpffs string) error { return errNotYet }
