//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What kubepace is compared with; for the benchmark only.
 *
 * "Single FIFO per pod" is the published rule of departure-time shaping, as
 * Cilium's bandwidth manager documents it, written from that description: the
 * pod's packets are tagged where they enter the node; at the exit device's
 * egress each one departs one cost after the pod's latest, and what would wait
 * longer than the horizon of 2 s is dropped. One clock, no locks, no flows.
 *
 * The tag is skb->mark: it survives bridging, routing and encapsulation on the
 * way to the exit device, where queue_mapping is overwritten by every device
 * in between.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

#define PEER_NSEC_PER_SEC 1000000000ULL
#define PEER_HORIZON_NS (2 * PEER_NSEC_PER_SEC)
#define PEER_MAX_PODS 1024

/* Set at load time, for peer_redirect. */
volatile const __u32 exit_ifindex = 0; /* where packets leave the node */
volatile const __be32 exit_destination = 0; /* redirect these only */

__u64 peer_redirected; /* packets; a GSO packet counts once */

/* One pod's FIFO. The key is the ifindex of the pod's host-side device. */
struct peer_fifo {
	__u64 rate_bps; /* bit/s */
	__u64 last_ns; /* departure of the latest packet */
	__u64 admitted; /* packets; a GSO packet counts once */
	__u64 dropped; /* over the horizon; the same */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PEER_MAX_PODS);
	__type(key, __u32);
	__type(value, struct peer_fifo);
} peer_fifos SEC(".maps");

/* Ingress of the pod's host-side device: remember whose packet it is. */
SEC("tc")
int peer_tag(struct __sk_buff *skb)
{
	skb->mark = skb->ifindex;
	return TC_ACT_UNSPEC;
}

/* Egress of the exit device: stamp. wire_len counts every segment's headers. */
SEC("tc")
int peer_stamp(struct __sk_buff *skb)
{
	__u64 now, cost, next;
	struct peer_fifo *fifo;
	__u32 key = skb->mark;

	fifo = bpf_map_lookup_elem(&peer_fifos, &key);
	if (!fifo || !fifo->rate_bps)
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	cost = skb->wire_len * 8 * PEER_NSEC_PER_SEC / fifo->rate_bps;
	next = fifo->last_ns + cost;
	if (next <= now) {
		fifo->last_ns = now;
		__sync_fetch_and_add(&fifo->admitted, 1);
		return TC_ACT_UNSPEC;
	}
	if (next - now >= PEER_HORIZON_NS) {
		__sync_fetch_and_add(&fifo->dropped, 1);
		return TC_ACT_SHOT;
	}
	fifo->last_ns = next;
	__sync_fetch_and_add(&fifo->admitted, 1);
	bpf_skb_set_tstamp(skb, next, BPF_SKB_TSTAMP_DELIVERY_MONO);
	return TC_ACT_UNSPEC;
}

/*
 * Ingress of the pod's host-side device, after the limiter: straight to the
 * exit device, past bridge and routing, as CNIs with eBPF host routing do. The
 * packet keeps its socket, so that TCP feels the queue.
 */
SEC("tc")
int peer_redirect(struct __sk_buff *skb)
{
	__be32 destination;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr),
			       &destination, sizeof(destination)) ||
	    destination != exit_destination)
		return TC_ACT_UNSPEC;
	__sync_fetch_and_add(&peer_redirected, 1);
	return bpf_redirect_neigh(exit_ifindex, NULL, 0, 0);
}

/* What a program that does nothing costs; subtracted from measured costs. */
SEC("tc")
int peer_nothing(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
