#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gets the control-plane binaries named on the command line and prints, as its last line of standard output, the
# folder that holds them. Builds from the Go module proxy, outside the checkout; what is there already is kept.
# usage: build.sh [kube-apiserver|etcd|kubectl|kube-controller-manager|kube-scheduler|kube-proxy|kubelet ...]
set -euo pipefail
cd "$(dirname "$0")"

[ $# -gt 0 ] || set -- etcd kubectl kube-apiserver
version=$(sed -n 's#^\tk8s.io/kubernetes \(v[0-9.]*\).*#\1#p' go.mod | head -n 1)
key=$(cat go.mod go.sum <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/kube/$version-$key
mkdir -p "$out"

say() { printf '%s\n' "$*" >&2; }

# Prints a line every 20 s, so that nobody takes a ten-minute build for a hang.
with_progress() {
	local name=$1 start=$SECONDS
	shift
	"$@" &
	local pid=$!
	trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		if [ $(((SECONDS - start) % 20)) -eq 19 ]; then
			say "  ... still building $name, $((SECONDS - start)) s"
		fi
	done
	trap - INT TERM
	wait "$pid"
}

(
	flock -w 3600 9 || { say "another build holds $out/.lock for an hour; giving up"; exit 1; }
	for name in "$@"; do
		[ -x "$out/$name" ] && continue
		case $name in
		etcd) package=go.etcd.io/etcd/server/v3 ; expect="about 30 s" ;;
		kube-apiserver) package=k8s.io/kubernetes/cmd/$name ; expect="about 10 minutes on 2 cores the first time" ;;
		*) package=k8s.io/kubernetes/cmd/$name ; expect="1 to 4 minutes the first time" ;;
		esac
		say "building $name $version from the Go module proxy ($expect) ..."
		start=$SECONDS
		with_progress "$name" env CGO_ENABLED=0 go build -mod=readonly -trimpath \
			-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
			-o "$out/.$name.tmp" "$package"
		mv "$out/.$name.tmp" "$out/$name"
		say "  $name built in $((SECONDS - start)) s"
	done
) 9>"$out/.lock"
echo "$out"
