// SPDX-License-Identifier: Apache-2.0

package main

import "time"

// plan says how much is measured.
type plan struct {
	Mode   string        `json:"mode"`
	Pods   int           `json:"limited_pods"`
	Idle   time.Duration `json:"idle_ns"`   // at rest: a resync; in full, of pods from the API server, a look into the pods as well
	Settle time.Duration `json:"settle_ns"` // before it, and after the churn

	FolderIdle time.Duration `json:"folder_idle_ns"` // the same, of pods from a folder
	Restarts   int           `json:"restarts"`

	Churn     time.Duration `json:"churn_ns"`
	PerSecond int           `json:"churn_pods_per_second"`
	Lifetime  time.Duration `json:"churn_pod_lifetime_ns"`

	Burst int `json:"pods_at_once"`

	Nodes       int           `json:"cluster_nodes"`
	PodsPerNode int           `json:"cluster_pods_per_node"`
	ClusterIdle time.Duration `json:"cluster_idle_ns"`
	Roll        int           `json:"rolling_change_pods"`
	RollPerSec  int           `json:"rolling_change_pods_per_second"`
}

var (
	full = plan{
		Mode: "full", Pods: 250, Idle: 600 * time.Second, FolderIdle: 3 * time.Minute, Settle: 35 * time.Second, Restarts: 7,
		Churn: 5 * time.Minute, PerSecond: 10, Lifetime: 5 * time.Second, Burst: 100,
		Nodes: 1000, PodsPerNode: 30, ClusterIdle: 2 * time.Minute, Roll: 3000, RollPerSec: 50,
	}
	brief = plan{
		Mode: "quick", Pods: 250, Idle: 3 * time.Minute, FolderIdle: 3 * time.Minute, Settle: 35 * time.Second, Restarts: 3,
		Churn: time.Minute, PerSecond: 10, Lifetime: 5 * time.Second, Burst: 100,
		Nodes: 100, PodsPerNode: 30, ClusterIdle: 30 * time.Second, Roll: 600, RollPerSec: 50,
	}
)

// Claims, as issue and documentation state them.
const (
	claimMemory  = 40 << 20              // bytes resident
	claimIdle    = 0.2                   // percent of one processor
	claimRestart = 2 * time.Second       // from start to all adopted
	claimEnforce = 50 * time.Millisecond // p99
)
