// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// Result is node.json.
type Result struct {
	Plan    plan      `json:"plan"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Started string    `json:"started"`
	Seconds float64   `json:"took_seconds"`
	Load    float64   `json:"load_before"` // of the machine, one minute's mean
	Steady  []*Steady `json:"steady"`
	Churn   *Churn    `json:"churn,omitempty"`
	Burst   *Burst    `json:"pods_at_once,omitempty"`
	Cluster *Cluster  `json:"cluster,omitempty"`
}

// leaked is an error where something was held after the churn that was not before.
func (r *Result) leaked() error {
	if r.Churn == nil {
		return nil
	}
	if r.Churn.Unenforced > 0 {
		return fmt.Errorf("%d pods of the churn ended without their limit", r.Churn.Unenforced)
	}
	if len(r.Churn.Leaks) > 0 {
		return fmt.Errorf("the churn leaked: %s", strings.Join(r.Churn.Leaks, ", "))
	}
	return nil
}
