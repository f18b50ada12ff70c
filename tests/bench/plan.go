// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubepace/kubepace/tests/bench/result"
)

// plan is which cases are run; every list in the order in which it runs.
type plan struct {
	mode     string // "quick", "full" or "chosen"
	limits   []int64
	ccs      []string
	flows    []int
	paths    []result.Path
	variants []result.Variant
	duration time.Duration // of each transfer
	rounds   int           // of the comparison with the idle path's ping
	// latencyLimits are for that comparison; none for none.
	latencyLimits   []int64
	neighbourRounds int  // of an unlimited pod's ping beside a limited one; 0 for none
	costs           bool // of a packet by itself, in the virtual machine as well
	closeOnes       bool // are measured again
}

func fullPlan() plan {
	return plan{
		mode: "full", limits: []int64{10e6, 100e6}, ccs: []string{"cubic", "bbr"}, flows: []int{1, 8, 64},
		paths: result.Paths, variants: result.Variants, duration: 10 * time.Second,
		rounds: 5, latencyLimits: []int64{10e6, 100e6, 500e6}, neighbourRounds: 5, costs: true, closeOnes: true,
	}
}

// quickPlan holds the telling cases: those where a queue builds up.
func quickPlan() plan {
	p := fullPlan()
	p.mode, p.ccs, p.flows, p.paths = "quick", []string{"cubic"}, []int{1, 8}, []result.Path{result.Straight}
	p.duration, p.latencyLimits, p.rounds, p.neighbourRounds = 4*time.Second, []int64{10e6}, 3, 1
	p.costs, p.closeOnes = false, false
	return p
}

// step is one setting with the variants that are measured under it, one after the other.
type step struct {
	result.Setting
	variants []result.Variant
}

// steps of one path. All variants of a setting follow each other, so that a machine that changes its mood does so for
// all of them. The unlimited control runs with the first limit only.
func (p plan) steps(path result.Path) []step {
	var steps []step
	for _, cc := range p.ccs {
		for i, limit := range p.limits {
			for _, flows := range p.flows {
				s := step{Setting: result.Setting{LimitBps: limit, CC: cc, Flows: flows, Path: path}}
				for _, v := range p.variants {
					if v != result.None || i == 0 {
						s.variants = append(s.variants, v)
					}
				}
				steps = append(steps, s)
			}
		}
	}
	return steps
}

func (p plan) cases() int {
	n := 0
	for _, path := range p.paths {
		for _, s := range p.steps(path) {
			n += len(s.variants)
		}
	}
	return n
}

// choose narrows a plan by words such as "paths=vxlan", "limits=10000000,100000000", "flows=1,8", "ccs=bbr",
// "variants=kubepace,tbf-small" and "duration=10s"; "latency=0" and "neighbour=0" leave these comparisons out.
func (p plan) choose(words []string) (plan, error) {
	for _, word := range words {
		key, list, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "paths":
			p.paths, err = oneOf(list, result.Paths)
		case "variants":
			p.variants, err = oneOf(list, result.Variants)
		case "ccs":
			p.ccs = strings.Split(list, ",")
		case "flows":
			p.flows, err = numbers[int](list)
		case "limits":
			p.limits, err = numbers[int64](list)
		case "latency":
			p.latencyLimits = nil
			if list != "0" {
				p.latencyLimits, err = numbers[int64](list)
			}
		case "neighbour":
			p.neighbourRounds, err = strconv.Atoi(list)
		case "duration":
			p.duration, err = time.ParseDuration(list)
		default:
			err = errors.New("unknown; one of paths, variants, ccs, flows, limits, latency, neighbour, duration")
		}
		if err != nil {
			return p, fmt.Errorf("choice %q: %w", word, err)
		}
		p.mode = "chosen"
	}
	if p.duration < 3*time.Second {
		return p, fmt.Errorf("duration %v: at least 3s, or nothing is left after the first second", p.duration)
	}
	return p, nil
}

func oneOf[T ~string](list string, known []T) ([]T, error) {
	var chosen []T
	for _, name := range strings.Split(list, ",") {
		if !slices.Contains(known, T(name)) {
			return nil, fmt.Errorf("%q is none of %v", name, known)
		}
		chosen = append(chosen, T(name))
	}
	return chosen, nil
}

func numbers[T int | int64](list string) ([]T, error) {
	var chosen []T
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%q is not a positive number", text)
		}
		chosen = append(chosen, T(n))
	}
	return chosen, nil
}
