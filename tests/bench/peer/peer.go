// SPDX-License-Identifier: Apache-2.0

// Package peer holds the limiters that the benchmark compares kubepace with, and attaches them to the devices of a
// node: a single FIFO per pod as an eBPF program of ours, and the CNI bandwidth plugin as the real binary. Its
// functions that touch devices work in the network namespace of the calling thread.
package peer

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" -type peer_fifo Peer peer.c
