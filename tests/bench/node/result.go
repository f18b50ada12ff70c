// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Result is node.json.
type Result struct {
	Plan    plan      `json:"plan"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Started string    `json:"started"`
	Seconds float64   `json:"took_seconds"`
	Kept    string    `json:"other_parts_begun,omitempty"` // when an earlier run began, of which parts are kept
	Load    float64   `json:"load_before"`                 // of the machine, one minute's mean
	Steady  []*Steady `json:"steady"`
	Churn   *Churn    `json:"churn,omitempty"`
	Burst   *Burst    `json:"burst,omitempty"`
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

// keep takes over from an earlier run, where there is one, the parts that this one did not measure.
func (r *Result) keep(file string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var before Result
	if err := json.Unmarshal(text, &before); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	r.Kept = before.Started
	measured := map[string]bool{}
	for _, s := range r.Steady {
		measured[s.Source] = true
	}
	for _, s := range before.Steady {
		if !measured[s.Source] {
			r.Steady = append(r.Steady, s)
		}
	}
	if r.Churn == nil {
		r.Churn, r.Burst = before.Churn, before.Burst
	}
	if r.Cluster == nil {
		r.Cluster = before.Cluster
	}
	return nil
}
