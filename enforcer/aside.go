// SPDX-License-Identifier: Apache-2.0

package enforcer

// aside is a look at the kernel that goes on while pods are limited: what it lists is waited for where others make networks. There
// is one at a time; a pass that follows takes what it comes to. It belongs to the loop.
type aside[T any] struct{ done chan T } // nil: none goes on

func (a *aside[T]) goesOn() bool { return a.done != nil }

// begin must not be called while one goes on. It calls wake at the end.
func (a *aside[T]) begin(look func() T, wake func()) {
	done := make(chan T, 1)
	a.done = done
	go func() {
		done <- look()
		wake()
	}()
}

// take is false where none is over.
func (a *aside[T]) take() (result T, ok bool) {
	select {
	case result = <-a.done:
		a.done = nil
		return result, true
	default:
		return result, false
	}
}

// wait is false where none goes on.
func (a *aside[T]) wait() (result T, ok bool) {
	if a.done == nil {
		return result, false
	}
	result = <-a.done
	a.done = nil
	return result, true
}
