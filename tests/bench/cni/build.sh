#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the CNI bandwidth plugin at the version that go.mod pins, statically, outside the checkout, and prints its path
# as the last line of standard output. What is there already is kept.
# usage: build.sh
set -euo pipefail
cd "$(dirname "$0")"
. ../../setup/progress.sh

module=github.com/containernetworking/plugins
version=$(go list -mod=readonly -m -f '{{.Version}}' "$module")
key=$(cat go.mod go.sum <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/cni/bandwidth-$version-$key
mkdir -p "$(dirname "$out")"

(
	flock -w 3600 9 || { say "another build holds $out.lock for an hour; giving up"; exit 1; }
	[ -x "$out" ] && exit 0
	say "building the CNI bandwidth plugin $version from the Go module proxy (about 30 s the first time) ..."
	with_progress bandwidth env CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X $module/pkg/utils/buildversion.BuildVersion=$version" \
		-o "$out.tmp" "$module/plugins/meta/bandwidth"
	mv "$out.tmp" "$out"
) 9>"$out.lock"
echo "$out"
