// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"time"

	"github.com/kubepace/kubepace/enforcer/device"
	"github.com/kubepace/kubepace/enforcer/pods"
)

// A pod that starts is to be limited before its first container sends, and each question that waits for the kernel's lock of
// all network configuration takes as long as its whole network where many pods start at once. So what can be done before
// CNI ADD is over is done before, and what can wait comes after.

const (
	// verifyAfter is when a pod that was found from the node's side alone is looked into.
	verifyAfter = time.Second
	// few pods that start at the same time do not keep each other waiting.
	few = 2
	// startsWithin is how long a pod may be known without a device until it is not expected any more.
	startsWithin = 5 * time.Minute
	// maxTouched bounds what is remembered of others' devices, of which the end is not told.
	maxTouched = 4096
	// prepareEvery lets go of devices that nobody claimed while pods are still expected.
	prepareEvery = 10 * time.Second
)

// expect says how many limited pods have no device yet, and lets the datapath prepare for them.
func (e *Enforcer) expect(snapshot pods.Snapshot) {
	n := 0
	for _, pod := range snapshot.Pods {
		if p := e.pods[pod.UID]; p != nil && pod.Limited() && !pod.Terminating && e.needsDevice(pod) && e.starts(p) {
			n++
		}
	}
	e.mu.Lock()
	e.expecting = n
	e.mu.Unlock()
	if err, over := e.preparing.take(); over && err != nil { // what fails here fails again, and is told, when a limit is set
		e.opts.Log.V(1).Info("not prepared for pods that start", "why", err.Error())
	}
	now := e.now()
	if e.preparing.goesOn() || n == e.prepared && now.Sub(e.preparedAt) < prepareEvery {
		return
	}
	e.prepared, e.preparedAt = n, now
	e.preparing.begin(func() error { return e.opts.Datapath.Expect(n) }, func() {
		if e.expected() != n {
			e.wakeForPass()
		}
	})
}

// starts reports whether a pod may be about to get its devices. One that has none for long waits for something else, such as a
// Secret.
func (e *Enforcer) starts(p *podState) bool {
	return len(p.found.Devices) == 0 && !p.seen && codeOf(p.err) == CodeDeviceNotFound && e.now().Sub(p.since) < startsWithin
}

// expected is how many limited pods have no device yet.
func (e *Enforcer) expected() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.expecting
}

// verify looks into pods that were found from the node's side alone, aside. It takes the scan over where it returns true.
func (e *Enforcer) verify(scan Scan, now time.Time) bool {
	if list, over := e.verifying.take(); over {
		for _, s := range list {
			if e.pods[s.uid] == s.pod && s.pod.found.Outside && s.query.Equal(s.pod.query) {
				e.found(s, now)
			}
		}
	}
	if e.verifying.goesOn() {
		return false
	}
	var list []*search
	for uid, p := range e.pods {
		if p.found.Outside && !now.Before(p.verify) {
			query := p.query
			query.Brief = false
			p.verify = now.Add(verifyAfter) // again, where it could not be told
			list = append(list, &search{uid: uid, pod: p, query: query, current: true})
		}
	}
	if len(list) == 0 {
		return false
	}
	e.verifying.begin(func() []*search {
		defer scan.Close()
		together(len(list), func(i int) { list[i].find(scan) })
		return list
	}, e.wakeForPass)
	return true
}

// isTouched reports whether a device has, or had, qdiscs or filters of its own.
func (e *Enforcer) isTouched(ifindex int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.touched[ifindex]
}

// touch notes that qdiscs or filters of a device changed.
func (e *Enforcer) touch(ifindex int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.touched) >= maxTouched {
		clear(e.touched)
	}
	e.touched[ifindex] = true
}

// untouch forgets it of devices that were looked at.
func (e *Enforcer) untouch(devices []device.Link) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range devices {
		delete(e.touched, d.Index)
	}
}
