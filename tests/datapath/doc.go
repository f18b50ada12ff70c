// SPDX-License-Identifier: Apache-2.0

// Package datapath tests the eBPF program with real traffic on the running kernel: on a kernel with fq and
// bpf_skb_set_tstamp it paces, elsewhere it polices, and the tests hold it to the bounds of that mode. The same test
// binary runs natively and in QEMU (tests/vm).
//
// Upper bounds hold always. Lower bounds (is the limit used?) depend on the machine, which may be busy: the best of
// a few attempts counts.
package datapath
