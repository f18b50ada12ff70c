#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds containerd, ctr, the CNI plugins, flanneld and what makes images, and prints, as its last line of standard output, the
# folder that holds them. Builds from the Go module proxy, outside the checkout; what is there already is kept.
# usage: build.sh
set -euo pipefail
cd "$(dirname "$0")"
. ../../setup/progress.sh

containerd=github.com/containerd/containerd/v2
version=$(go list -mod=readonly -m -f '{{.Version}}' "$containerd")
key=$(cat go.mod go.sum flanneld/*.go image/*.go pause/*.go <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/node/$version-$key
mkdir -p "$out"

# A go build of several packages names the programs after their folders.
(
	flock -w 3600 9 || { say "another build holds $out/.lock for an hour; giving up"; exit 1; }
	[ -e "$out/.done" ] && exit 0
	say "building containerd $version, CNI plugins and flanneld from the Go module proxy (about 3 minutes on 2 cores the first time) ..."
	start=$SECONDS
	with_progress "the node's programs" env CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X $containerd/version.Version=$version" -o "$out/" tool ./flanneld ./image ./pause
	touch "$out/.done"
	say "  built in $((SECONDS - start)) s"
) 9>"$out/.lock"
echo "$out"
