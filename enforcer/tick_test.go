// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"
	"os"
	"testing"
	"time"
)

// TestTick: it comes again and again, and a wait ends when it is stopped.
func TestTick(t *testing.T) {
	fast, err := newTick(time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer fast.close()
	for range 3 {
		if err := fast.wait(); err != nil {
			t.Fatal(err)
		}
	}
	slow, err := newTick(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.close()
	ended := make(chan error)
	go func() { ended <- slow.wait() }()
	select {
	case err := <-ended:
		t.Fatalf("ended with %v before its time", err)
	case <-time.After(20 * time.Millisecond):
	}
	slow.stop()
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v; want %v", err, os.ErrDeadlineExceeded)
	}
	if err := slow.wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("waits again, until %v", err)
	}
	if _, err := newTick(-1); err == nil {
		t.Error("a timer of no length is made")
	}
}
