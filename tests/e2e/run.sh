#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what a cluster of two nodes needs, and runs the end-to-end tests in it. Binaries of kubepace are those of bin/.
# usage: run.sh [--kernel VERSION] [TEST-FLAGS...]     such as -test.run=TestKubepace/reference; VERSION as for tests/vm/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
kernel=''
if [ "${1:-}" = --kernel ]; then
	kernel=$2
	shift 2
fi
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
# netperf's own C library, at the paths where its interpreter looks.
netperf=$(tests/e2e/netperf.sh | tail -n 1)
pairs=("$netperf/ld-linux-x86-64.so.2=/lib64/ld-linux-x86-64.so.2" "$netperf/netperf=/usr/bin/netperf")
for library in libc.so.6 libm.so.6 libsctp.so.1; do pairs+=("$netperf/$library=/usr/lib/x86_64-linux-gnu/$library"); done
image netperf -entrypoint /usr/bin/netserver "$netperf/netserver=/usr/bin/netserver" "${pairs[@]}"
image kubepace-webhook -user 65532 -entrypoint /kubepace-webhook bin/kubepace-webhook=/kubepace-webhook
image kubepace-enforcer -entrypoint /kubepace-enforcer bin/kubepace-enforcer=/kubepace-enforcer

# For what an administrator does on a node: the nodes see this folder.
cp bin/kubepace-enforcer "$out/images/"

go test -c -o bin/e2e.test ./tests/e2e
if [ -z "$kernel" ]; then
	cd tests/e2e
	# Busy machines stand still for half a minute now and then. This stretches what is waited for, not what is measured.
	export KUBEPACE_E2E_PATIENCE=${KUBEPACE_E2E_PATIENCE:-3}
	export KUBEPACE_E2E_KUBE=$kube KUBEPACE_E2E_PROGRAMS=$programs KUBEPACE_E2E_ENFORCER=$out/images/kubepace-enforcer KUBEPACE_E2E_OUT=$out
	exec ../../bin/e2e.test -test.v -test.timeout="$((30 * ${KUBEPACE_E2E_COUNT:-1}))m" "$@"
fi

# In QEMU the processor is emulated and there is one, with a clock of its own: a cluster is up in a minute of its time and
# five of ours. Only what another kernel changes runs there.
[ $# -gt 0 ] || set -- -test.run='TestKubepace/(network|reference|inspect)'
tests/setup/install.sh vm
say "kernel $kernel runs in QEMU without hardware acceleration: a cluster takes some minutes to start"
with=()
for program in runc nsenter mount umount pivot_root hostname find sysctl; do with+=(--with "$program"); done
exec tests/vm/run.sh --steady --kernel "$kernel" --memory 4096 --timeout 3600 "${with[@]}" \
	--env KUBEPACE_E2E_KUBE=/root/kube --env KUBEPACE_E2E_PROGRAMS=/root/programs --env KUBEPACE_E2E_ENFORCER=/root/out/images/kubepace-enforcer \
	--env KUBEPACE_E2E_OUT=/root/out --env KUBEPACE_E2E_PATIENCE=3 --env "CI=${CI:-}" \
	--tree "$kube:/root/kube" --tree "$programs:/root/programs" --tree "$out/images:/root/out/images" \
	--tree manifests:/root/kubepace/manifests --tree tests/e2e:/root/kubepace/tests/e2e \
	--file bin/e2e.test --out "/root/out/logs:$out/logs" \
	-- bash -c 'cd /root/kubepace/tests/e2e && exec /root/e2e.test -test.v -test.timeout=35m "$@"' e2e "$@"
