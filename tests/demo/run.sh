#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the demonstration with the binaries of bin/: here, or inside a Debian kernel in QEMU. Results go to build/.
# usage: run.sh [KERNEL]     KERNEL: 5.10, 6.1, 6.12 or 7; none for this machine's own
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
kernel=${1:-}

kube=$(tests/kube/build.sh etcd kube-apiserver kubectl | tail -n 1)
mkdir -p build
rm -rf build/demo.json build/demo.svg build/demo-logs
"$kube/kubectl" kustomize manifests/base >build/manifests.yaml
if [ -z "$kernel" ]; then
	exec bin/kubepace-demo --kube "$kube"
fi

tests/setup/install.sh vm
say "kernel $kernel runs in QEMU without hardware acceleration: starting takes a few minutes"
# On the counting clock: what else this machine does changes no figure.
boot() {
	tests/vm/run.sh --steady --kernel "$kernel" --memory 3072 --timeout 900 \
		--file build/manifests.yaml:/root/manifests.yaml --out /root/build:build \
		--file bin/kubepace-demo:/root/kubepace-demo \
		--file bin/kubepace-webhook:/root/bin/kubepace-webhook --file bin/kubepace-enforcer:/root/bin/kubepace-enforcer \
		--file "$kube/etcd:/root/kube/etcd" --file "$kube/kube-apiserver:/root/kube/kube-apiserver" \
		-- /root/kubepace-demo --kube /root/kube --manifests /root/manifests.yaml --limit 12m
}

status=0
boot || status=$?
# 125: not the demonstration failed but the machine.
if [ $status = 125 ]; then
	say "the virtual machine failed; once more"
	status=0
	boot || status=$?
fi
exit $status
