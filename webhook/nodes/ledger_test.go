// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func lease(name, holder string, seconds int32, renewed int64) coordinationv1.Lease {
	at := metav1.NewMicroTime(time.Unix(renewed, 0))
	return coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &at}}
}

func agent(node string, seconds int32, renewed int64) coordinationv1.Lease {
	return lease("kubepace-enforcer-"+node, node, seconds, renewed)
}

// look is one look at the Leases, at a second of our clock; lost is one that failed.
type look struct {
	at     int64
	lost   bool
	leases []coordinationv1.Lease
	want   []string
}

func TestExpired(t *testing.T) {
	for name, looks := range map[string][]look{
		"renewed": {
			{at: 0, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 50, leases: []coordinationv1.Lease{agent("a", 60, 40)}},
			{at: 100, leases: []coordinationv1.Lease{agent("a", 60, 80)}},
		},
		"run out, one of two": {
			{at: 0, leases: []coordinationv1.Lease{agent("a", 60, 0), agent("b", 60, 0)}},
			{at: 59, leases: []coordinationv1.Lease{agent("a", 60, 0), agent("b", 60, 50)}},
			{at: 60, leases: []coordinationv1.Lease{agent("a", 60, 0), agent("b", 60, 50)}, want: []string{"a"}},
			{at: 75, leases: []coordinationv1.Lease{agent("a", 60, 0), agent("b", 60, 50)}, want: []string{"a"}},
			{at: 90, leases: []coordinationv1.Lease{agent("a", 60, 85), agent("b", 60, 70)}}, // back again
		},
		"a new leader gives the full time, whatever the lease says": {
			{at: 5000, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 5059, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 5060, leases: []coordinationv1.Lease{agent("a", 60, 0)}, want: []string{"a"}},
		},
		"an agent whose clock is ahead": {
			{at: 0, leases: []coordinationv1.Lease{agent("a", 60, 90000)}},
			{at: 60, leases: []coordinationv1.Lease{agent("a", 60, 90000)}, want: []string{"a"}},
		},
		"after an outage everybody gets the full time": {
			{at: 0, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 15, lost: true},
			{at: 300, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 359, leases: []coordinationv1.Lease{agent("a", 60, 0)}},
			{at: 360, leases: []coordinationv1.Lease{agent("a", 60, 0)}, want: []string{"a"}},
		},
		"hostile: for ever, or for no time at all": {
			{at: 0, leases: []coordinationv1.Lease{agent("ever", 1<<31-1, 0), agent("never", -5, 0)}},
			{at: 1, leases: []coordinationv1.Lease{agent("ever", 1<<31-1, 0), agent("never", -5, 0)}},
			{at: 2, leases: []coordinationv1.Lease{agent("ever", 1<<31-1, 0), agent("never", -5, 0)}, want: []string{"never"}},
			{at: 600, leases: []coordinationv1.Lease{agent("ever", 1<<31-1, 0)}, want: []string{"ever"}},
		},
		"others' leases": {
			{at: 0, leases: []coordinationv1.Lease{lease("kubepace-webhook-leader", "x", 15, 0), lease("kubepace-enforcer-a", "b", 15, 0), lease("kubepace-enforcer-", "", 15, 0)}},
			{at: 900, leases: []coordinationv1.Lease{lease("kubepace-webhook-leader", "x", 15, 0), lease("kubepace-enforcer-a", "b", 15, 0), lease("kubepace-enforcer-", "", 15, 0)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var l ledger
			for _, look := range looks {
				if look.lost {
					l.reset()
					continue
				}
				var got []string
				for _, lease := range l.expired(look.leases, time.Unix(look.at, 0)) {
					got = append(got, nodeOf(lease))
				}
				if diff := cmp.Diff(look.want, got); diff != "" {
					t.Errorf("at %d (-want +got):\n%s", look.at, diff)
				}
			}
		})
	}
}
