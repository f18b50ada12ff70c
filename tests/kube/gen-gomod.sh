#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes go.mod for the control-plane binaries: k8s.io/kubernetes, etcd, and one replace line per staging module.
# Run it to move to another Kubernetes version, then `go mod tidy`; the result is committed.
set -euo pipefail
cd "$(dirname "$0")"
KUBERNETES_VERSION=${KUBERNETES_VERSION:-v1.37.2}
STAGING_VERSION=v0.${KUBERNETES_VERSION#v1.}
ETCD_VERSION=${ETCD_VERSION:-v3.7.3}

upstream=$(cd "$(mktemp -d)" && go mod download -json "k8s.io/kubernetes@$KUBERNETES_VERSION" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
{
	echo "module github.com/kubepace/kubepace/tests/kube"
	echo
	grep -E '^go ' "$upstream"
	cat <<-MOD

	tool (
		go.etcd.io/etcd/server/v3
		k8s.io/kubernetes/cmd/kube-apiserver
		k8s.io/kubernetes/cmd/kube-controller-manager
		k8s.io/kubernetes/cmd/kube-proxy
		k8s.io/kubernetes/cmd/kube-scheduler
		k8s.io/kubernetes/cmd/kubectl
		k8s.io/kubernetes/cmd/kubelet
	)

	require (
		go.etcd.io/etcd/server/v3 $ETCD_VERSION
		k8s.io/kubernetes $KUBERNETES_VERSION
	)

	replace (
	MOD
	awk -v v="$STAGING_VERSION" '/=> \.\/staging/{print "\t"$1" => "$1" "v}' "$upstream"
	echo ")"
} >go.mod
