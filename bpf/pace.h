/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The arithmetic of pacing, and nothing else: no helper is called, no map is
 * looked up, and the time comes in as a parameter. The caller holds the pod's
 * lock.
 *
 * One virtual clock per pod: clock_ns is the time at which everything that was
 * admitted so far has left at exactly the limit. A packet costs its wire bytes
 * over the rate; it departs when the clock says, and moves the clock on by its
 * cost. So the sum over all packets keeps the limit, whatever the flows do.
 *
 * Five refinements decide who waits and who loses:
 *
 * - Sparse flows first. A flow that uses less than 1/(4n) of the rate, where n
 *   flows compete, moves the clock but does not wait for it: the bulk flows
 *   pay. What was sent ahead of the clock this way is a debt; it is bounded,
 *   see pace_sparse_allowed().
 * - Early notice. A flow whose queue passes a target is told so, once, by one
 *   mark or one lost packet, and is then left alone for as long as it takes to
 *   notice. See pace_early().
 * - Fair drops. Every flow has a tag that advances by n times the cost: its
 *   own clock at its fair share. A flow whose tag is over the horizon loses
 *   packets before its neighbours do.
 * - The horizon grows with n and with 1/rate, so that each of n flows can have
 *   a few packets in flight, and one packet of any size always passes.
 * - Batches. What waits leaves in small batches: fewer timers, fewer and larger packets. See pace_batch().
 *
 * Units: times and costs in ns of CLOCK_MONOTONIC, sizes in wire bytes (link
 * header to payload, every segment). Overflow: a packet has at most 2^20 bytes
 * and n at most PACE_MAX_FLOWS, so n * 4 * cost stays below 2^57 at the lowest
 * rate (1000 bit/s).
 */
#ifndef KUBEPACE_PACE_H
#define KUBEPACE_PACE_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define PACE_NSEC_PER_SEC 1000000000ULL
#define PACE_BIT_NS (8 * PACE_NSEC_PER_SEC) /* ns for one byte at 1 bit/s */
#define PACE_MAX_BYTES (1U << 20)
#define PACE_MAX_FLOWS 1024U
/* The largest packet without BIG TCP; one such packet always passes. */
#define PACE_GSO_BYTES 65536ULL
/* Of each competing flow, packets that may wait. */
#define PACE_FLOW_PACKETS 8
/* The least time for which competing flows are counted. */
#define PACE_EPOCH_NS 100000000ULL
/* fq drops what departs later than its own horizon, 10 s from now. */
#define PACE_MAX_HORIZON_NS (9 * PACE_NSEC_PER_SEC)
/* The longest that a packet waits for others to leave with. */
#define PACE_MAX_BATCH_NS 20000000ULL
/* All sparse packets together may use one part in so many of the limit. */
#define PACE_SPARSE_PART 8
/* The most that may go ahead of the clock at once where two frames cost more. */
#define PACE_MAX_SPARSE_BURST_NS PACE_NSEC_PER_SEC
/* Packets of one pod that may wait in fq; fq's limit is shared by everyone. */
#define PACE_MAX_PARKED 1024ULL
/* Of these, packets that wait because their sender paces itself (SO_TXTIME). */
#define PACE_MAX_OWN 256ULL
#define PACE_PARKED_SHIFT 8 /* parked packets are counted in 1/256 */
#define PACE_WAYS 4 /* flows in one bucket */
#define PACE_BUCKETS 256 /* buckets of one pod */

enum pace_mode {
	PACE_POLICING = 0, /* admit at once or drop */
	PACE_PACING = 1, /* admit with a departure time, or drop */
};

/* What the agent asks for. It never holds state, so that a live change of the
 * limit does not touch the clock.
 */
struct pace_limit {
	__u64 rate_bps; /* bit/s; 0: no limit */
	__u64 horizon_ns; /* the least horizon */
	__u64 mtu_ns; /* cost of one full frame, link header included */
	__u64 gso_ns; /* cost of PACE_GSO_BYTES */
	enum pace_mode mode;
	__u32 pad;
};

/* How many packets wait in fq, as a fluid: they leave evenly until end_ns. */
struct pace_parked {
	__u64 at_ns; /* when `packets` was right */
	__u64 end_ns; /* departure of the last one */
	__u64 packets; /* in 1/256 */
};

/* One pod's state. Everything but `marked` and `unstamped` is written under
 * the lock; readers that only look need none.
 */
struct pace_pod {
	struct bpf_spin_lock lock;
	__u32 epoch;
	__u64 clock_ns;
	__u64 remainder; /* bit-ns that the last cost was rounded down by */
	__u64 rate_bps; /* under which clock_ns was reached */
	__u64 sparse_ns; /* clock of what went ahead, see pace_sparse_allowed */
	__u64 epoch_end_ns;
	__u64 batch_ns; /* departure of the latest batch */
	__u32 flows; /* that competed in the last epoch */
	__u32 flows_now; /* that compete in this one, so far */
	struct pace_parked parked; /* by the clock */
	struct pace_parked own; /* by the senders' own pacing */
	/* Counters. */
	__u64 packets; /* admitted, every segment */
	__u64 bytes; /* admitted */
	__u64 delayed; /* admitted, to depart in the future */
	__u64 sparse; /* admitted ahead of the clock */
	__u64 marked; /* ECN congestion experienced */
	__u64 dropped; /* refused, every segment */
	__u64 dropped_bytes;
	__u64 unstamped; /* delayed, but the kernel took no departure time */
};

struct pace_flow {
	__u64 key; /* hash of the 5-tuple; 0: free */
	__u64 tag_ns; /* the flow's clock at its fair share */
	__u64 sparse_tag_ns; /* the same at a quarter of it, moved by drops too */
	__u64 depart_ns; /* of the flow's latest packet */
	__u64 calm_ns; /* until then its last early notice works */
	__u32 epoch; /* in which the flow was last counted */
	__u32 fragment; /* verdict on the latest datagram in fragments */
};

struct pace_bucket {
	struct pace_flow way[PACE_WAYS];
};

/* Fragments other than the first carry no ports and must share its fate: a
 * datagram that lacks one is lost whole.
 */
enum pace_fragment {
	PACE_WHOLE = 0,
	PACE_FIRST_FRAGMENT,
	PACE_LATER_FRAGMENT,
};

struct pace_packet {
	__u64 now_ns;
	__u64 own_depart_ns; /* the sender's own pacing; 0: none */
	__u32 bytes; /* wire bytes of all segments */
	__u32 segments; /* at least 1 */
	__u32 fragment; /* enum pace_fragment */
	__u32 fragment_id; /* lowest bit ignored */
	__u32 ecn_capable; /* can be marked */
	__u32 pad;
};

struct pace_verdict {
	__u64 depart_ns; /* now or later; meaningless when dropped */
	__u32 drop;
	__u32 mark; /* mark ECN congestion */
};

/* All ones where a < b, else zero; both below 2^63. Without a branch: each one
 * would double what the verifier has to follow.
 */
static __always_inline __u64 pace_less(__u64 a, __u64 b)
{
	__s64 sign = a - b;

	asm volatile("%0 s>>= 63" : "+r"(sign));
	return sign;
}

static __always_inline __u64 pace_max(__u64 a, __u64 b)
{
	return a + ((b - a) & pace_less(a, b));
}

static __always_inline __u64 pace_min(__u64 a, __u64 b)
{
	return b + ((a - b) & pace_less(a, b));
}

/*
 * The flow of a key: its own entry, else the idlest of the bucket. An entry
 * whose flow still has packets waiting is not taken over but shared, so that
 * neither of the two is ever reordered; they then count as one flow.
 */
static __always_inline struct pace_flow *
pace_flow_of(struct pace_bucket *bucket, __u64 key, __u64 now)
{
	struct pace_flow *victim = &bucket->way[0];
	__u64 victim_busy = ~0ULL;

#pragma unroll
	for (int i = 0; i < PACE_WAYS; i++) {
		struct pace_flow *f = &bucket->way[i];
		__u64 busy = pace_max(pace_max(f->tag_ns, f->depart_ns),
				      f->sparse_tag_ns);

		if (f->key == key)
			return f;
		if (busy < victim_busy) {
			victim_busy = busy;
			victim = f;
		}
	}
	if (victim_busy <= now) {
		victim->key = key;
		victim->epoch = 0;
		victim->fragment = 0;
	}
	return victim;
}

/* How long flows are counted for: as long as they may wait, or those of which
 * nothing arrives meanwhile would be missed.
 */
static __always_inline __u64 pace_epoch_ns(__u64 n, __u64 mtu_ns)
{
	__u64 wait = PACE_FLOW_PACKETS * mtu_ns * pace_min(n, PACE_MAX_FLOWS);

	return pace_min(pace_max(PACE_EPOCH_NS, wait), PACE_MAX_HORIZON_NS);
}

/*
 * Counts anew, every epoch, how many flows compete. Returns n, at least 1. Of
 * flows that were never seen in an earlier epoch, only those of the last
 * PACE_EPOCH_NS count: ever new short ones would add up, and lengthen the epoch
 * in which they are counted.
 */
static __always_inline __u64 pace_count_flow(struct pace_pod *p,
					     struct pace_flow *f, __u64 now,
					     __u64 mtu_ns)
{
	__u64 n;

	if (now >= p->epoch_end_ns) {
		__u8 stale = now >= p->epoch_end_ns + PACE_EPOCH_NS;

		p->flows = stale ? 0 : p->flows_now;
		p->flows_now = 0;
		p->epoch++;
		p->epoch_end_ns = now + pace_epoch_ns(p->flows, mtu_ns);
	}
	/* Ahead of its fair share by half a packet: it competes. */
	if (f->tag_ns > now + mtu_ns / 2 && f->epoch != p->epoch) {
		p->flows_now += f->epoch ||
				now + PACE_EPOCH_NS >= p->epoch_end_ns;
		f->epoch = p->epoch;
	}
	n = pace_max(p->flows, p->flows_now);
	n = pace_min(n, PACE_MAX_FLOWS);
	return pace_max(n, 1);
}

/*
 * The backlog beyond which packets are dropped. Each competing flow may have
 * eight packets in it: bbr keeps four in flight and probes for more, and with
 * six its flows shared a low limit less fairly. Four of a policed one, which do
 * not wait and so return at once. A policed packet of PACE_GSO_BYTES fits into
 * it whole.
 */
static __always_inline __u64 pace_horizon_ns(const struct pace_limit *l,
					     __u64 n)
{
	if (l->mode == PACE_PACING)
		return pace_min(pace_max(l->horizon_ns,
					 PACE_FLOW_PACKETS * l->mtu_ns * n),
				PACE_MAX_HORIZON_NS);
	return pace_max(pace_max(l->horizon_ns, 4 * l->mtu_ns * n),
			2 * l->gso_ns);
}

/* The queue that a paced flow may keep: a third of the horizon, and room for
 * three packets of each competing flow.
 */
static __always_inline __u64 pace_target_ns(const struct pace_limit *l, __u64 n,
					    __u64 horizon)
{
	return pace_min(pace_max(l->horizon_ns / 3, 3 * l->mtu_ns * n),
			horizon / 2);
}

/*
 * When a packet departs whose time is `clock`: with others that wait as well.
 * A batch opens for at most half of the wait. A flow whose packets leave
 * together gets fewer acknowledgements for them, and so sends fewer and larger
 * packets next.
 *
 * Lengths are scattered, from half to two and a half GSO packets, up to the
 * longest: TCP splits what it has in store at what one acknowledgement frees,
 * and with equal batches it splits at the same place for ever, where one packet
 * could have left instead of two.
 */
static __always_inline __u64 pace_batch(struct pace_pod *p,
					const struct pace_limit *l, __u64 clock,
					__u64 backlog)
{
	/* The golden ratio's bits scatter times that lie close together. */
	__u64 random = clock * 0x9E3779B97F4A7C15ULL >> 54;
	__u64 ns = l->gso_ns * (512 + 2 * random) >> 10;

	/* A batch that is further away was made under another limit. */
	if (clock > p->batch_ns || p->batch_ns > clock + PACE_MAX_BATCH_NS)
		p->batch_ns = clock + pace_min(pace_min(ns, PACE_MAX_BATCH_NS),
					       backlog / 2);
	return p->batch_ns;
}

/* The burst of sparse packets that may go ahead of the clock at once. At the
 * lowest limits two frames take half a minute to pay for: a second must do.
 */
static __always_inline __u64 pace_sparse_burst_ns(const struct pace_limit *l)
{
	return pace_max(l->horizon_ns / 16,
			pace_min(2 * l->mtu_ns, PACE_MAX_SPARSE_BURST_NS));
}

/*
 * May a packet go ahead of the clock? Its flow must have no packet waiting
 * (never reorder) and be under a quarter of its fair share, give or take one
 * MTU. And all such packets together have a clock of their own that advances
 * by PACE_SPARSE_PART times the cost: while the backlog of at most one horizon
 * is worked off, at most horizon / 8 + burst goes ahead of it. That is the
 * bound on the sparse debt: rate x (horizon / 8 + pace_sparse_burst_ns()).
 * Larger packets leave half of the burst to small ones: what many flows send
 * again after their timeouts must not cost a ping its place.
 */
static __always_inline int pace_sparse_allowed(const struct pace_pod *p,
					       const struct pace_flow *f,
					       const struct pace_limit *l,
					       __u64 now, __u64 cost, __u64 n)
{
	__u64 tag = pace_max(f->sparse_tag_ns, now) + 4 * n * cost;
	__u64 all = pace_max(p->sparse_ns, now) + PACE_SPARSE_PART * cost;
	__u64 room = PACE_SPARSE_PART * pace_sparse_burst_ns(l);

	room -= room / 2 & pace_less(l->mtu_ns, 4 * cost);
	return f->depart_ns <= now && tag - now <= 4 * n * l->mtu_ns &&
	       all - now <= room;
}

/* Brings the number of waiting packets up to date and returns it, in 1/256. */
static __always_inline __u64 pace_parked_now(struct pace_parked *q, __u64 now)
{
	if (q->end_ns <= now || q->end_ns <= q->at_ns) {
		q->packets = 0;
		q->at_ns = now;
	} else if (now > q->at_ns) {
		q->packets =
			q->packets * (q->end_ns - now) / (q->end_ns - q->at_ns);
		q->at_ns = now;
	}
	return q->packets;
}

static __always_inline void pace_park(struct pace_parked *q, __u64 depart)
{
	q->packets += 1 << PACE_PARKED_SHIFT;
	q->end_ns = pace_max(q->end_ns, depart);
}

/* Is the backlog, before or with this packet, more than the limit allows? */
static __always_inline int pace_over(const struct pace_limit *l, __u64 backlog,
				     __u64 cost, __u64 room)
{
	if (l->mode == PACE_POLICING)
		return backlog + cost > room;
	return backlog > room;
}

static __always_inline int
pace_must_drop(struct pace_pod *p, const struct pace_flow *f,
	       const struct pace_limit *l, const struct pace_packet *k,
	       __u64 backlog, __u64 cost, __u64 horizon)
{
	__u64 lead = f->tag_ns > k->now_ns ? f->tag_ns - k->now_ns : 0;
	__u64 room = horizon;

	if (l->mode == PACE_POLICING) /* what sparse flows may need */
		room -= pace_min(pace_sparse_burst_ns(l), horizon / 2);
	if (k->fragment == PACE_LATER_FRAGMENT) {
		if (f->fragment == (k->fragment_id & ~1U))
			return 1; /* the first one was dropped */
		if (f->fragment == (k->fragment_id | 1)) {
			if (l->mode == PACE_PACING)
				horizon += l->gso_ns;
			return pace_over(l, backlog, cost, horizon);
		}
	}
	if (k->fragment != PACE_WHOLE) /* room for the whole datagram */
		cost = l->gso_ns;
	if (pace_over(l, backlog, cost, room))
		return 1;
	if (pace_parked_now(&p->parked, k->now_ns) >=
	    PACE_MAX_PARKED << PACE_PARKED_SHIFT)
		return 1;
	return lead > room && backlog > room / 4;
}

/*
 * Is it time to tell a paced flow that its queue is too long? It slows down
 * for one lost packet as much as for a hundred, but only after the packets in
 * front of the gap have arrived; until then it is left alone, and the horizon
 * has room for what a sender in slow start sends meanwhile.
 */
static __always_inline int pace_early(struct pace_flow *f,
				      const struct pace_limit *l,
				      const struct pace_packet *k,
				      __u64 backlog, __u64 cost, __u64 target)
{
	__u64 lead = f->tag_ns > k->now_ns ? f->tag_ns - k->now_ns : 0;

	/* Small packets open and close connections and acknowledge. */
	if (l->mode != PACE_PACING || k->fragment == PACE_LATER_FRAGMENT ||
	    2 * cost < l->mtu_ns || lead <= target || backlog <= target / 2 ||
	    k->now_ns < f->calm_ns)
		return 0;
	f->calm_ns = k->now_ns + lead + target;
	return 1;
}

/*
 * When an admitted packet departs. A flow is never reordered. The sender's own
 * pacing is kept where it asks for later, within the horizon and for a bounded
 * number of packets: it delays that sender and nobody else.
 */
static __always_inline __u64 pace_depart(struct pace_pod *p,
					 const struct pace_flow *f,
					 const struct pace_packet *k,
					 __u64 time, __u64 horizon)
{
	__u64 now = k->now_ns, depart = pace_max(time, f->depart_ns);
	__u64 own = pace_min(k->own_depart_ns & (~0ULL >> 1), now + horizon);

	if (own > depart &&
	    pace_parked_now(&p->own, now) < PACE_MAX_OWN << PACE_PARKED_SHIFT) {
		pace_park(&p->own, own);
		return own;
	}
	if (depart > now) {
		pace_parked_now(&p->parked, now);
		pace_park(&p->parked, depart);
	}
	return depart;
}

/* Forgets debt that a raised limit would never have made. Without this, one
 * large packet at 1k keeps a pod silent for minutes after its limit was raised.
 */
static __always_inline void pace_adopt_rate(struct pace_pod *p, __u64 rate_bps,
					    __u64 now, __u64 horizon,
					    __u64 target)
{
	if (p->rate_bps == rate_bps)
		return;
	if (rate_bps > p->rate_bps && p->clock_ns > now + horizon)
		p->clock_ns = now + target;
	p->remainder = 0;
	p->rate_bps = rate_bps;
}

static __always_inline void pace_count_dropped(struct pace_pod *p,
					       const struct pace_packet *k)
{
	p->dropped += k->segments;
	p->dropped_bytes += k->bytes;
}

/* Moves the clocks on by what an admitted packet costs, exactly. */
static __always_inline void pace_charge(struct pace_pod *p, struct pace_flow *f,
					const struct pace_packet *k,
					__u64 clock, __u64 cost, __u64 n)
{
	p->clock_ns = clock + cost;
	f->tag_ns = pace_max(f->tag_ns, k->now_ns) + n * cost;
	p->packets += k->segments;
	p->bytes += k->bytes;
}

/*
 * The verdict on one packet of a limited pod, k->bytes <= PACE_MAX_BYTES. The
 * caller holds the pod's lock, and f is a flow of this pod.
 */
static __always_inline struct pace_verdict
pace_admit(struct pace_pod *p, struct pace_flow *f, const struct pace_limit *l,
	   const struct pace_packet *k)
{
	struct pace_verdict v = {};
	__u64 now = k->now_ns, n = pace_count_flow(p, f, now, l->mtu_ns);
	__u64 horizon = pace_horizon_ns(l, n);
	__u64 target = pace_target_ns(l, n, horizon);
	__u64 bit_ns, cost, clock, backlog;
	int sparse;

	pace_adopt_rate(p, l->rate_bps, now, horizon, target);
	bit_ns = k->bytes * PACE_BIT_NS + p->remainder;
	cost = bit_ns / l->rate_bps;
	clock = pace_max(p->clock_ns, now);
	backlog = clock - now;
	/* What waits of one flow is at most all that waits. */
	f->tag_ns = pace_min(f->tag_ns, now + n * backlog);

	sparse = pace_sparse_allowed(p, f, l, now, cost, n);
	if (l->mode == PACE_POLICING && backlog + cost > horizon)
		sparse = 0;
	f->sparse_tag_ns =
		pace_min(pace_max(f->sparse_tag_ns, now) + 4 * n * cost,
			 now + 8 * n * l->mtu_ns);

	v.drop = !sparse &&
		 (pace_must_drop(p, f, l, k, backlog, cost, horizon) ||
		  (!k->ecn_capable &&
		   pace_early(f, l, k, backlog, cost, target)));
	if (k->fragment == PACE_FIRST_FRAGMENT)
		f->fragment = (k->fragment_id & ~1U) | !v.drop;
	if (v.drop) {
		pace_count_dropped(p, k);
		return v;
	}
	if (sparse && backlog) {
		p->sparse_ns =
			pace_max(p->sparse_ns, now) + PACE_SPARSE_PART * cost;
		p->sparse++;
	}
	v.mark = !sparse && k->ecn_capable && backlog > target / 2;
	v.depart_ns = now;
	if (l->mode == PACE_PACING)
		v.depart_ns = pace_depart(
			p, f, k,
			sparse || !backlog ? now :
					     pace_batch(p, l, clock, backlog),
			horizon);
	f->depart_ns = v.depart_ns;
	p->delayed += v.depart_ns > now;
	p->remainder = bit_ns - cost * l->rate_bps;
	pace_charge(p, f, k, clock, cost, n);
	return v;
}

#endif
