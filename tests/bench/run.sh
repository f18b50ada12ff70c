#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the datapath benchmark in a Debian kernel in QEMU, draws its figures, writes its tables into docs/benchmarks.md
# and prints what it says of the project's claims. Results go to build/bench.
# usage: run.sh [--quick] [KEY=LIST ...]      keys: paths, limits, ccs, flows, variants, latency, neighbour, duration (see tests/bench/plan.go)
# KERNEL: 6.1 (default), 6.12 or 7. STRICT=1: fail unless every claim is met. BENCH_TIMEOUT: seconds for the machine.
# The machine has one processor whose clock counts instructions: what else this machine does changes no figure.
# STEADY=0: two processors in real time. DOCS=no: docs/ stays as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
kernel=${KERNEL:-6.1}
out=build/bench
strict=()
steady=(--steady)
[ "${STEADY:-1}" != 0 ] || steady=()
[ -z "${STRICT:-}" ] || strict=(--strict)
docs=docs/benchmarks.md
[ "${DOCS:-}" != no ] || docs=

tests/setup/install.sh vm
plugin=$(tests/bench/cni/build.sh | tail -n 1)
mkdir -p "$out" bin
CGO_ENABLED=0 go build -o bin/kubepace-bench ./tests/bench
rm -f "$out"/*.json "$out"/*.svg

say "cost per packet on this machine's own kernel ..."
bin/kubepace-bench cost --out "$out" || say "not measured here; the virtual machine measures it too"
say "kernel $kernel runs in QEMU without hardware acceleration: figures are comparable with each other only"
revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
tests/vm/run.sh --kernel "$kernel" ${steady[@]+"${steady[@]}"} --memory 2048 --timeout "${BENCH_TIMEOUT:-7200}" --out "/root/bench:$out" \
	--env "BENCH_REVISION=$revision" --env "BENCH_PLUGIN=$(basename "$plugin" | cut -d- -f2)" \
	--file bin/kubepace-bench:/root/kubepace-bench --file "$plugin:/root/bandwidth" \
	-- /root/kubepace-bench run --out /root/bench --plugin /root/bandwidth "$@"
bin/kubepace-bench show --out "$out" --docs "$docs" ${strict[@]+"${strict[@]}"}
