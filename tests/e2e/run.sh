#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what a cluster of two nodes needs, and runs the end-to-end tests in it. Binaries of kubepace are those of bin/.
# usage: run.sh [TEST-FLAGS...]     such as -test.run=TestCluster/nodes
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
out=$PWD/build/e2e

kube=$(tests/kube/build.sh etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl | tail -n 1)
programs=$(tests/kube/node/build.sh | tail -n 1)
rm -rf "$out"
mkdir -p "$out/images" "$out/logs"

# image NAME [FLAGS] FILE=PATH...
image() {
	local name=$1
	shift
	"$programs/image" -ref "kubepace.test/$name:e2e" -out "$out/images/$name.tar" "$@"
}

# Debian's iperf3 with the libraries that it is linked to, each at its own path.
iperf3=$(command -v iperf3)
mapfile -t libraries < <(ldd "$iperf3" | grep -oE '/[^ ]+' | sort -u)
pairs=()
for library in "${libraries[@]}"; do pairs+=("$library=$library"); done
image pause -entrypoint /pause "$programs/pause=/pause"
image iperf3 -entrypoint /usr/bin/iperf3 "$iperf3=/usr/bin/iperf3" "${pairs[@]}"
image kubepace-webhook -user 65532 -entrypoint /kubepace-webhook bin/kubepace-webhook=/kubepace-webhook
image kubepace-enforcer -entrypoint /kubepace-enforcer bin/kubepace-enforcer=/kubepace-enforcer

go test -c -o bin/e2e.test ./tests/e2e
cd tests/e2e
export KUBEPACE_E2E_KUBE=$kube KUBEPACE_E2E_PROGRAMS=$programs KUBEPACE_E2E_OUT=$out
exec ../../bin/e2e.test -test.v -test.timeout=30m "$@"
