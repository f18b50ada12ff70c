// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer"
)

// Health is what the agent says of itself.
type Health int

const (
	// Starting: it does not know yet. What the node advertises stays, for another agent may have set it a moment ago.
	Starting Health = iota
	// Healthy: every pod's limit can be kept.
	Healthy
	// Broken: this node cannot enforce.
	Broken
)

func healthOf(a Agent) (Health, string) {
	err := a.Readiness()
	switch {
	case !a.Alive():
		return Broken, "the agent's loop stands still"
	case errors.Is(err, enforcer.ErrStarting):
		return Starting, ""
	case err != nil:
		return Broken, err.Error()
	}
	return Healthy, ""
}

// action is what to do with what the node advertises.
type action int

const (
	leave action = iota
	advertise
	withdraw
)

// brokenFor is how long an agent is broken before it says so to the scheduler: one failed look is no outage.
const brokenFor = 10 * time.Second

// decide compares what the node advertises with what it should. Broken since is the zero time while it is not. Whatever
// the answer, pods that are bound already stay: withdrawing only keeps further ones away.
func decide(h Health, since, now time.Time, n *corev1.Node, amount int64) action {
	if n == nil {
		return leave
	}
	capacity, has := n.Status.Capacity[bandwidth.Resource]
	allocatable, offers := n.Status.Allocatable[bandwidth.Resource]
	switch {
	case h == Broken && now.Sub(since) >= brokenFor && (has || offers):
		return withdraw
	case h != Healthy:
		return leave
	case !has || !offers || capacity.Value() != amount || allocatable.Value() != amount:
		return advertise
	}
	return leave
}
