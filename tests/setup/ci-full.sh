#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests at length, and the benchmarks' claims by their quick runs. A failed step stops none; logs and summary.txt
# are in build/ci-full. Needs root.
# usage: ci-full.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
export CI=true
exec </dev/null
report=$PWD/build/ci-full
. tests/setup/steps.sh

# Runs a benchmark, and fails where its table says that a claim is not met. Quick figures do not go into docs/.
claims() { make "$1" QUICK=1 DOCS=no STRICT=1 | awk '{ print; fflush() } /\*\*not met\*\*/ { bad = 1 } END { exit bad }'; }
export -f claims

step install tests/setup/install.sh go kernel demo e2e vm bpf lint
step build make build
step generated make check-generated
two_at_once \
	'lint make lint' \
	'unit make test-unit' \
	'admission make test-admission' \
	'fuzz make fuzz FUZZTIME=1m' \
	'e2e-6.1 make e2e KERNEL=6.1' \
	'demo-6.1 make demo KERNEL=6.1'
step matrix make test-vm KERNELS="5.10 6.1 6.12 7" FULL=6.12
step datapath make test-datapath FULL=all
step node make test-node FULL=all
step e2e make e2e
step crowd make e2e RUN=TestKubepace/crowd COUNT=10
step demo make demo
for bench in bench-admission bench-datapath bench-node; do
	step $bench bash -o pipefail -c "claims $bench"
done
summary
