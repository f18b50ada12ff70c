#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds CNI plugins at the version that go.mod pins, statically, outside the checkout, and prints as the last line of
# standard output the path of the bandwidth plugin, or with --folder the folder of them all. What is there is kept.
# usage: build.sh [--folder]
set -euo pipefail
cd "$(dirname "$0")"
. ../../setup/progress.sh

module=github.com/containernetworking/plugins
version=$(go list -mod=readonly -m -f '{{.Version}}' "$module")
key=$(cat go.mod go.sum <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/cni/$version-$key
mkdir -p "$out"

(
	flock -w 3600 9 || { say "another build holds $out/.lock for an hour; giving up"; exit 1; }
	[ -e "$out/.done" ] && exit 0
	say "building CNI plugins $version from the Go module proxy (about 30 s the first time) ..."
	with_progress "CNI plugins" env CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X $module/pkg/utils/buildversion.BuildVersion=$version" -o "$out/" tool
	touch "$out/.done"
) 9>"$out/.lock"
if [ "${1:-}" = --folder ]; then echo "$out"; else echo "$out/bandwidth"; fi
