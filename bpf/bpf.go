// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the eBPF program that keeps the limits, compiled, with the Go types that the compiler's own type
// information gives for its maps, and the iterator that names the devices which have it first. Only package datapath imports it.
package bpf

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" -type pace_limit -type pace_pod -type pace_bucket -type kubepace_identity -type kubepace_device -type pace_mode -type kubepace_device_flags Egress egress.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" Hooks hooks.c
