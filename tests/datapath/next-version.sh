#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the enforcer as a later version might be: its program's maps have another layout, by the name of one counter.
# usage: next-version.sh FILE
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
LC_ALL=C sed 's/unstamped/something/g' bpf/egress_bpfel.o >"$dir/egress_bpfel.o"
! cmp -s bpf/egress_bpfel.o "$dir/egress_bpfel.o" || { echo "next-version.sh: bpf/egress_bpfel.o has no field \"unstamped\" any more" >&2; exit 1; }
printf '{"Replace": {"%s": "%s"}}\n' "$PWD/bpf/egress_bpfel.o" "$dir/egress_bpfel.o" >"$dir/overlay.json"
go build -overlay "$dir/overlay.json" -o "$1" ./cmd/kubepace-enforcer
