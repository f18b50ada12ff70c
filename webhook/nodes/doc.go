// SPDX-License-Identifier: Apache-2.0

// Package nodes takes kubepace.io/egress-bandwidth from nodes whose agent is gone. An agent that fails withdraws what its
// node advertises itself; a dead one cannot, and the scheduler would go on placing pods there whose limits nobody keeps.
// Pods that are bound to the node already are not touched.
package nodes
