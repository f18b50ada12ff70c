#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gets the control-plane binaries named on the command line and prints, as its last line of standard output, the
# folder that holds them. Builds from the Go module proxy, outside the checkout; what is there already is kept.
# usage: build.sh [kube-apiserver|etcd|kubectl|kube-controller-manager|kube-scheduler|kube-proxy|kubelet ...]
set -euo pipefail
cd "$(dirname "$0")"
. ../setup/progress.sh

[ $# -gt 0 ] || set -- etcd kubectl kube-apiserver
version=$(sed -n 's#^\tk8s.io/kubernetes \(v[0-9.]*\).*#\1#p' go.mod | head -n 1)
key=$(cat go.mod go.sum <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/kube/$version-$key
mkdir -p "$out"

(
	flock -w 3600 9 || { say "another build holds $out/.lock for an hour; giving up"; exit 1; }
	missing=() packages=()
	for name in "$@"; do
		[ ! -x "$out/$name" ] || continue
		missing+=("$name")
		case $name in
		etcd) packages+=(go.etcd.io/etcd/server/v3) ;;
		*) packages+=("k8s.io/kubernetes/cmd/$name") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || exit 0
	say "building ${missing[*]} $version from the Go module proxy (10 to 15 minutes on 2 cores the first time) ..."
	start=$SECONDS
	rm -rf "$out/.tmp"
	mkdir "$out/.tmp"
	# All in one, so that one is compiled while another is linked.
	with_progress "${missing[*]}" env CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$out/.tmp/" "${packages[@]}"
	[ ! -e "$out/.tmp/server" ] || mv "$out/.tmp/server" "$out/.tmp/etcd"
	mv "$out/.tmp"/* "$out/"
	rmdir "$out/.tmp"
	say "  built in $((SECONDS - start)) s"
) 9>"$out/.lock"
echo "$out"
