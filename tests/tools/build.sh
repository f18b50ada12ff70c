#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds golangci-lint at the version that go.mod pins, outside the checkout, and prints its path as the last line of
# standard output. What is there already is kept.
# usage: build.sh
set -euo pipefail
cd "$(dirname "$0")"
. ../setup/progress.sh

package=github.com/golangci/golangci-lint/v2
version=$(go list -mod=readonly -m -f '{{.Version}}' "$package")
key=$(cat go.mod go.sum <(go version) | sha256sum | cut -c1-16)
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
out=$cache/tools/golangci-lint-$version-$key
mkdir -p "$(dirname "$out")"

(
	flock -w 3600 9 || { say "another build holds $out.lock for an hour; giving up"; exit 1; }
	[ -x "$out" ] && exit 0
	say "building golangci-lint $version from the Go module proxy (about 5 minutes on 2 cores the first time) ..."
	start=$SECONDS
	with_progress golangci-lint env CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X main.version=${version#v}" -o "$out.tmp" "$package/cmd/golangci-lint"
	mv "$out.tmp" "$out"
	say "  golangci-lint built in $((SECONDS - start)) s"
) 9>"$out.lock"
echo "$out"
