//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * For tests: runs pace.h on one packet per call, at a time that the test
 * chooses. The test reads and writes the variables through .bss.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "pace.h"

struct pace_limit limit;
struct pace_packet packet;
struct pace_verdict verdict;
__u64 flow_key;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pace_pod);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACE_BUCKETS);
	__type(key, __u32);
	__type(value, struct pace_bucket);
} buckets SEC(".maps");

SEC("tc")
int pace_one(struct __sk_buff *skb)
{
	__u32 zero = 0, index = (flow_key >> 32) % PACE_BUCKETS;
	struct pace_pod *pod = bpf_map_lookup_elem(&pods, &zero);
	struct pace_bucket *bucket = bpf_map_lookup_elem(&buckets, &index);
	struct pace_packet k = packet;
	struct pace_limit l = limit;
	struct pace_verdict v;

	(void)skb;
	if (!pod || !bucket || !l.rate_bps)
		return 1;
	bpf_spin_lock(&pod->lock);
	v = pace_admit(pod, pace_flow_of(bucket, flow_key, k.now_ns), &l, &k);
	bpf_spin_unlock(&pod->lock);
	verdict = v;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
