//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Runs where a pod's packets enter the node: the ingress hook of the pod's
 * host-side device, before routing, SNAT or encapsulation. Finds the pod and
 * the flow, lets pace.h decide, and stamps the departure time. What others
 * attached to the same hook still runs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "pace.h"
#include "parse.h"

/* Set by the agent at load time. */
/* The kernel has bpf_skb_set_tstamp (Linux 5.18). Without it: policing. */
volatile const __u32 can_stamp = 0;
/* Keeps pods from choosing flows that collide. */
volatile const __u64 hash_seed = 0;

#define KUBEPACE_MAX_PODS 16384 /* slots; the agent hands them out */
#define KUBEPACE_MAX_DEVICES 65536

enum kubepace_device_flags {
	/* The agent added the clsact qdisc, so it may take it away. */
	KUBEPACE_OWN_CLSACT = 1,
};

/* Which pod a device belongs to. A pod may have several devices. */
struct kubepace_device {
	__u32 slot;
	enum kubepace_device_flags flags; /* for the agent */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, KUBEPACE_MAX_DEVICES);
	__type(key, __u32); /* ifindex */
	__type(value, struct kubepace_device);
} kubepace_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KUBEPACE_MAX_PODS);
	__type(key, __u32); /* slot */
	__type(value, struct pace_limit);
} kubepace_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KUBEPACE_MAX_PODS);
	__type(key, __u32); /* slot */
	__type(value, struct pace_pod);
} kubepace_pods SEC(".maps");

/* Makes the compiler emit the type whole; nothing refers to it otherwise. */
const struct pace_bucket *kubepace_unused __attribute__((unused));

/* The flows of one pod; allocated by the agent for limited pods only. */
struct kubepace_flow_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACE_BUCKETS);
	__type(key, __u32);
	__type(value, struct pace_bucket);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, KUBEPACE_MAX_PODS);
	__type(key, __u32); /* slot */
	__array(values, struct kubepace_flow_table);
} kubepace_flows SEC(".maps");

/* Whom a slot belongs to. The program never reads it: it is for people who
 * look while no agent runs.
 */
struct kubepace_identity {
	char uid[64];
	char namespace[64];
	char name[256];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, KUBEPACE_MAX_PODS);
	__type(key, __u32); /* slot */
	__type(value, struct kubepace_identity);
} kubepace_identities SEC(".maps");

static __always_inline struct pace_bucket *bucket_of(__u32 slot, __u64 key)
{
	__u32 index = (key >> 32) % PACE_BUCKETS;
	void *table = bpf_map_lookup_elem(&kubepace_flows, &slot);

	return table ? bpf_map_lookup_elem(table, &index) : NULL;
}

/* The time from which the sender itself wants the packet to leave. */
static __always_inline __u64 own_departure(struct __sk_buff *skb)
{
	if (!can_stamp || skb->tstamp_type != BPF_SKB_TSTAMP_DELIVERY_MONO)
		return 0;
	return skb->tstamp;
}

static __always_inline void stamp(struct __sk_buff *skb, struct pace_pod *pod,
				  const struct pace_packet *k, __u64 depart)
{
	if (!can_stamp)
		return;
	/* Not later than now: no stamp needed, but a strange one removed. */
	if (depart <= k->now_ns && !skb->tstamp_type)
		return;
	/* Only IPv4 and IPv6 can be stamped; the horizon polices the rest. */
	if (bpf_skb_set_tstamp(skb, depart, BPF_SKB_TSTAMP_DELIVERY_MONO) &&
	    depart > k->now_ns)
		__sync_fetch_and_add(&pod->unstamped, 1);
}

static __always_inline void mark(struct __sk_buff *skb, struct pace_pod *pod)
{
	int marked = bpf_skb_ecn_set_ce(skb);

	/* Refused while the header is shared, as with a capture in the pod. */
	if (!marked && !bpf_skb_pull_data(skb, skb->len))
		marked = bpf_skb_ecn_set_ce(skb);
	if (marked)
		__sync_fetch_and_add(&pod->marked, 1);
}

SEC("tc")
int kubepace_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, slot;
	struct kubepace_device *device;
	struct pace_packet k = {};
	struct pace_flow stray = {}, *f;
	struct pace_bucket *bucket;
	struct pace_limit *limit, l;
	struct pace_verdict v;
	struct pace_pod *pod;
	struct parsed parsed;

	device = bpf_map_lookup_elem(&kubepace_devices, &ifindex);
	if (!device)
		return TC_ACT_UNSPEC;
	slot = device->slot;
	limit = bpf_map_lookup_elem(&kubepace_limits, &slot);
	pod = bpf_map_lookup_elem(&kubepace_pods, &slot);
	if (!limit || !pod)
		return TC_ACT_UNSPEC;
	l = *limit;
	if (!l.rate_bps)
		return TC_ACT_UNSPEC;
	if (!can_stamp)
		l.mode = PACE_POLICING;

	parse(skb, hash_seed, &parsed);
	k.bytes = parsed.bytes;
	k.segments = parsed.segments;
	k.fragment = parsed.fragment;
	k.fragment_id = parsed.fragment_id;
	k.ecn_capable = parsed.ecn_capable;
	k.own_depart_ns = own_departure(skb);
	/* Without its flow table a pod is still held, as one flow. */
	bucket = bucket_of(slot, parsed.key);
	k.now_ns = bpf_ktime_get_ns();

	bpf_spin_lock(&pod->lock);
	f = bucket ? pace_flow_of(bucket, parsed.key, k.now_ns) : &stray;
	v = pace_admit(pod, f, &l, &k);
	bpf_spin_unlock(&pod->lock);

	if (v.drop)
		return TC_ACT_SHOT;
	stamp(skb, pod, &k, v.depart_ns);
	if (v.mark)
		mark(skb, pod);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
