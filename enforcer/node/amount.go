// SPDX-License-Identifier: Apache-2.0

// Package node says in the cluster's own terms what this node can keep: it advertises the extended resource
// kubepace.io/egress-bandwidth while the agent is healthy, and renews the Lease by which a leader elsewhere sees that
// the agent is still there.
package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/kubepace/kubepace/bandwidth"
)

// Unbounded is advertised where a node's sum of limits is not bounded, in bits/s. The scheduler multiplies by 100 in 64
// bits, so it can be no more.
const Unbounded int64 = 90e15

// Policy is how much a node advertises.
type Policy struct {
	kind       kind
	rate       int64   // of kindRate
	overcommit float64 // of kindLink
}

type kind int

const (
	kindUnbounded kind = iota
	kindRate
	kindLink
	kindOff
)

// ParsePolicy reads "unbounded", "link", "off" or a rate such as "10G". Overcommit is for link, a factor.
func ParsePolicy(text string, overcommit float64) (Policy, error) {
	if !(overcommit > 0 && overcommit <= 1000) {
		return Policy{}, fmt.Errorf("overcommit %v is not above 0 and at most 1000", overcommit)
	}
	switch text {
	case "unbounded":
		return Policy{kind: kindUnbounded}, nil
	case "off":
		return Policy{kind: kindOff}, nil
	case "link":
		return Policy{kind: kindLink, overcommit: overcommit}, nil
	}
	r, err := bandwidth.Parse(text)
	if err != nil {
		return Policy{}, fmt.Errorf("neither unbounded, link, off nor a rate: %w", err)
	}
	return Policy{kind: kindRate, rate: int64(r)}, nil
}

// Off reports whether the node's resource is not ours to set.
func (p Policy) Off() bool { return p.kind == kindOff }

// Link is a device by which packets leave, with its speed in bits/s; 0 where that is not known.
type Link struct {
	Name  string
	Speed int64
}

// Amount decides what to advertise in bits/s, and says why where it is not what was asked for. It is never less than what
// is bound to the node already: a kubelet that restarts would end running pods.
func (p Policy) Amount(links []Link, bound int64) (amount int64, why string) {
	switch p.kind {
	case kindRate:
		amount = p.rate
	case kindLink:
		amount, why = p.ofLinks(links)
	default:
		amount = Unbounded
	}
	if bound > amount {
		amount = min(bound, Unbounded)
		why = "pods that are bound to the node request " + bits(bound)
	}
	return amount, why
}

func (p Policy) ofLinks(links []Link) (int64, string) {
	if len(links) == 0 {
		return Unbounded, "no device by which packets leave is known"
	}
	var sum float64
	for _, l := range links {
		if l.Speed <= 0 {
			return Unbounded, "the speed of " + l.Name + " is not known"
		}
		sum += float64(l.Speed)
	}
	return int64(math.Min(math.Max(sum*p.overcommit, 1), float64(Unbounded))), ""
}

// speedOf reads a device's speed as the kernel shows it below /sys/class/net; 0 where it does not know, as for most
// virtual devices.
func speedOf(sysfs, device string) (int64, error) {
	data, err := os.ReadFile(filepath.Join(sysfs, filepath.Base(device), "speed"))
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read speed of %s: %w", device, err)
	}
	megabits, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read speed of %s: %w", device, err)
	}
	const most = 1e9 // a petabit per second
	if megabits <= 0 || megabits > most {
		return 0, nil
	}
	return megabits * 1e6, nil
}
