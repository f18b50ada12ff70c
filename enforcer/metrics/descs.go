// SPDX-License-Identifier: Apache-2.0

package metrics

import "github.com/prometheus/client_golang/prometheus"

// descs of every metric that Collect makes itself.
var descs []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("kubepace_enforcer_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

func perPod(name, help string) *prometheus.Desc {
	return desc("pod_"+name, help+" Pods beyond --metrics-pods are summed under (other).", "namespace", "pod")
}

// Of pods: counted by the kernel since the pod was first limited, restarts of the agent or not.
var (
	podLimit = perPod("limit_bits_per_second", "The pod's egress limit: in force, or where it is not enforced, wanted.")
	podBytes = perPod("bytes_total", "What the pod was let send, in bytes on the wire: link header to payload, every segment.")

	podPackets      = perPod("packets_total", "Packets that the pod was let send, each segment of a large one counted.")
	podDelayed      = perPod("delayed_packets_total", "Packets let through that wait for their time: pacing.")
	podSparse       = perPod("sparse_packets_total", "Packets of small flows that went ahead of the pod's own backlog.")
	podMarked       = perPod("marked_packets_total", "Packets that were marked with ECN congestion experienced.")
	podDropped      = perPod("dropped_packets_total", "Packets that were dropped to keep the limit.")
	podDroppedBytes = perPod("dropped_bytes_total", "What was dropped to keep the limit, in bytes on the wire.")

	podBacklog     = desc("pod_backlog_seconds", "How long what the pod has sent takes to leave at its limit.", "namespace", "pod")
	podEnforced    = desc("pod_enforced", "1 where the pod's limit is kept for all that it sends.", "namespace", "pod")
	podNotEnforced = desc("pod_not_enforced_info", "1 for each pod whose limit is not kept, or not for all that it sends, with the reason in one word.", "namespace", "pod", "reason")
)

// Of the node and of the loop.
var (
	pods        = desc("pods", "Pods of this node that want an egress limit, by whether it is kept, and why not.", "enforced", "reason")
	podsSummed  = desc("pods_summed", "Pods that have no series of their own because of --metrics-pods.")
	pacing      = desc("pacing", "1 where limits are kept by pacing, 0 where by policing.")
	synced      = desc("synced", "1 while all pods of this node are known.")
	problems    = desc("problems", "What the latest pass could not do; the log and \"kubepace-enforcer status\" say what.")
	hookRepairs = desc("repairs_total", "Times that somebody took a pod's limit off its device (removed) or went before it (hidden), and it was put right.", "cause")
	exits       = desc("exit_devices", "Devices by which packets leave the node, by whether fq paces there.", "paced")
	podDevices  = desc("pod_devices_without_fq", "Devices that lead to pods and have no fq: traffic between pods of this node is policed there.")
	buildInfo   = desc("build_info", "1, labelled with the version of the agent and the name of its node.", "version", "node")
)
