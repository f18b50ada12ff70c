/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What pacing needs to know of a packet: its size on the wire, its flow, and
 * whether it is a fragment or can be marked.
 */
#ifndef KUBEPACE_PARSE_H
#define KUBEPACE_PARSE_H

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

#define PARSE_VLAN_BYTES 4
#define PARSE_UDP_BYTES 8
#define PARSE_IP_MF 0x2000
#define PARSE_IP_OFFSET 0x1fff
#define PARSE_MAX_EXTENSIONS 6

struct parsed {
	__u64 key; /* hash of the flow, never 0 */
	__u32 bytes; /* on the wire: link header to payload, all segments */
	__u32 segments; /* at least 1 */
	__u32 fragment; /* enum pace_fragment */
	__u32 fragment_id;
	__u32 ecn_capable;
};

struct parse_fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* 13 bits in units of 8 bytes, 2 reserved, 1 "more" */
	__be32 id;
};

struct parse_ports {
	__be16 source, dest;
};

/* Mixes 64 bits well enough that a flow cannot guess its neighbours. */
static __always_inline __u64 parse_mix(__u64 h, __u64 word)
{
	h ^= word;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 32;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ h >> 29;
}

/* Reads header bytes that may lie outside the linear part. */
#define parse_load(skb, offset, to) \
	(!bpf_skb_load_bytes(skb, offset, &(to), sizeof(to)))

static __always_inline __u32 parse_ipv4(struct __sk_buff *skb, struct parsed *p,
					__u8 *proto)
{
	struct iphdr ip;
	__u16 frag;

	if (!parse_load(skb, ETH_HLEN, ip))
		return 0;
	*proto = ip.protocol;
	p->ecn_capable = ip.tos & 3;
	p->key = parse_mix(p->key, (__u64)ip.saddr << 32 | ip.daddr);
	frag = bpf_ntohs(ip.frag_off);
	if (frag & (PARSE_IP_MF | PARSE_IP_OFFSET)) {
		p->fragment = frag & PARSE_IP_OFFSET ? PACE_LATER_FRAGMENT :
						       PACE_FIRST_FRAGMENT;
		/* Shifted: the lowest bit holds the verdict. */
		p->fragment_id = (__u32)ip.id << 1;
	}
	return ETH_HLEN + ip.ihl * 4;
}

static __always_inline __u32 parse_ipv6(struct __sk_buff *skb, struct parsed *p,
					__u8 *proto)
{
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
	struct parse_fragment_header fh;
	struct ipv6hdr ip;
	__u64 words[4];
	__u8 next, ext[2];

	if (!parse_load(skb, ETH_HLEN, ip))
		return 0;
	p->ecn_capable = bpf_ntohs(*(__be16 *)&ip) >> 4 & 3;
	__builtin_memcpy(words, &ip.saddr, sizeof(words));
	for (int i = 0; i < 4; i++)
		p->key = parse_mix(p->key, words[i]);
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < PARSE_MAX_EXTENSIONS; i++) {
		if (next == IPPROTO_FRAGMENT) {
			if (!parse_load(skb, offset, fh))
				break;
			p->fragment = bpf_ntohs(fh.offset) & ~7 ?
					      PACE_LATER_FRAGMENT :
					      PACE_FIRST_FRAGMENT;
			p->fragment_id = bpf_ntohl(fh.id) << 1;
			next = fh.next;
			offset += sizeof(fh);
			continue;
		}
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS)
			break;
		if (!parse_load(skb, offset, ext))
			break;
		next = ext[0];
		offset += (ext[1] + 1) * 8;
	}
	*proto = next;
	return offset;
}

/* The headers that every segment of a GSO packet repeats, link header first. */
static __always_inline __u32 parse_header_bytes(struct __sk_buff *skb,
						__u32 offset, __u8 proto)
{
	__u8 data_offset;

	if (proto != IPPROTO_TCP)
		return offset + PARSE_UDP_BYTES;
	if (!parse_load(skb, offset + 12, data_offset))
		return offset + 20;
	return offset + (data_offset >> 4) * 4;
}

static __always_inline void parse(struct __sk_buff *skb, __u64 seed,
				  struct parsed *p)
{
	__u32 offset = 0, tag = skb->vlan_present ? PARSE_VLAN_BYTES : 0;
	struct parse_ports ports;
	__u8 proto = 0;

	__builtin_memset(p, 0, sizeof(*p));
	p->key = parse_mix(seed, skb->protocol);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		offset = parse_ipv4(skb, p, &proto);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		offset = parse_ipv6(skb, p, &proto);

	p->key = parse_mix(p->key, proto);
	/* Fragments of one datagram stay together: none uses the ports. */
	if (offset && p->fragment == PACE_WHOLE &&
	    (proto == IPPROTO_TCP || proto == IPPROTO_UDP ||
	     proto == IPPROTO_SCTP) &&
	    parse_load(skb, offset, ports))
		p->key = parse_mix(p->key,
				   (__u64)ports.source << 16 | ports.dest);
	if (!p->key)
		p->key = 1;

	p->segments = skb->gso_segs > 1 ? skb->gso_segs : 1;
	/* Not wire_len: it counts the headers of a GSO packet once. */
	p->bytes = skb->len + tag;
	if (p->segments > 1)
		p->bytes += (p->segments - 1) *
			    (tag + parse_header_bytes(skb, offset, proto));
	if (p->bytes > PACE_MAX_BYTES)
		p->bytes = PACE_MAX_BYTES;
}

#endif
