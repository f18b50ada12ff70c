//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * An iterator over the kernel's links that names the devices whose packets our
 * program sees first: with hundreds of pods one read instead of a question for
 * each device. It changes nothing. Needs a kernel with tcx and BTF.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* Of the kernel's own types what is read here; the loader finds the offsets. */
#define KERNEL __attribute__((preserve_access_index))

#define LINK_TYPE_TCX 11 /* BPF_LINK_TYPE_TCX, Linux 6.6 */

struct bpf_prog_aux {
	__u32 id;
} KERNEL;

struct bpf_prog {
	struct bpf_prog_aux *aux;
} KERNEL;

struct bpf_link {
	enum bpf_link_type type;
	struct bpf_prog *prog;
} KERNEL;

struct bpf_mprog_fp {
	struct bpf_prog *prog;
} KERNEL;

struct bpf_mprog_entry {
	struct bpf_mprog_fp fp_items[1]; /* in the order in which they run */
} KERNEL;

struct ns_common {
	unsigned int inum;
} KERNEL;

struct net {
	struct ns_common ns;
} KERNEL;

typedef struct {
	struct net *net;
} KERNEL possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
	struct bpf_mprog_entry *tcx_ingress;
} KERNEL;

struct tcx_link {
	struct bpf_link link;
	struct net_device *dev; /* NULL once it is detached */
} KERNEL;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} KERNEL;

struct bpf_iter__bpf_link {
	struct bpf_iter_meta *meta;
	struct bpf_link *link;
} KERNEL;

/* What is read through the pointer that this returns may be anything, or 0 where it cannot be read. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;

volatile const __u32 program_id; /* ours */
volatile const __u32 netns_inode; /* the node's: numbers of devices repeat */

SEC("iter/bpf_link")
int kubepace_hooks(struct bpf_iter__bpf_link *ctx)
{
	struct bpf_link *link = ctx->link;
	struct bpf_mprog_entry *entry;
	struct net_device *dev;
	struct tcx_link *tcx;
	__u32 ifindex;

	if (!link || (__u32)link->type != LINK_TYPE_TCX)
		return 0;
	if (link->prog->aux->id != program_id)
		return 0;
	/*
	 * The device may go away meanwhile: what is read of it then is of no
	 * device that anybody asks for.
	 */
	tcx = bpf_rdonly_cast(link, bpf_core_type_id_kernel(struct tcx_link));
	dev = tcx->dev;
	if (!dev || dev->nd_net.net->ns.inum != netns_inode)
		return 0;
	entry = dev->tcx_ingress;
	if (!entry || entry->fp_items[0].prog != link->prog)
		return 0;
	ifindex = dev->ifindex;
	bpf_seq_write(ctx->meta->seq, &ifindex, sizeof(ifindex));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
