// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"slices"
	"syscall"
	"testing"
)

// Every replica is restarted in turn, as a rollout does it, while certificates rotate: not one call is refused.
func TestRollingRestart(t *testing.T) {
	s := needService(t)
	l := s.startLoad(t, 4)
	for range 2 {
		for _, r := range s.replicas {
			if err := r.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			eventually(t, r.Name+" to be unready, answering still", func() bool { return !r.Ready() })
			if !r.Running() {
				t.Errorf("%s ended without draining", r.Name)
			}
			if err := r.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, r.Log())
			}
			if slices.Contains(s.balancer.Endpoints(), r.Address) {
				t.Fatalf("%s is gone before the Service knows: the test's drain is too short", r.Name)
			}
			l.more(t, "without "+r.Name)
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
			if err := r.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, r.Name+" among the endpoints", func() bool { return slices.Contains(s.balancer.Endpoints(), r.Address) })
			l.more(t, "with "+r.Name)
		}
	}
	l.finish(t)
}
