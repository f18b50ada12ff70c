#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gets netperf, which Debian 12 does not have, with the C library of the suite that has it, and prints, as its last line of
# standard output, the folder that they are unpacked in. Nothing is installed; what is there already is kept.
# usage: netperf.sh
set -euo pipefail

cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
suite=trixie
out=$cache/netperf/$suite

say() { printf '%s\n' "$*" >&2; }
die() { say "netperf.sh: $*"; exit 1; }
. "$(dirname "$0")/../setup/debian.sh"

if [ ! -d "$out" ]; then
	mkdir -p "$cache/netperf"
	stage=$(mktemp -d "$cache/netperf/.fetch.XXXXXX")
	trap 'rm -rf "$stage"' EXIT
	apt_state=$stage/apt
	say "netperf: reading the lists of $suite ..."
	update_lists $suite
	(cd "$stage" && apt_own apt-get download netperf libc6 libsctp1 >download.log 2>&1) ||
		{ cat "$stage/download.log" >&2; die "download failed"; }
	for deb in "$stage"/*.deb; do dpkg-deb -x "$deb" "$stage/root"; done
	# Of the C library's package, what netperf is linked to.
	mkdir -p "$stage/out"
	for pattern in netperf netserver 'ld-linux-x86-64.so.2' libc.so.6 libm.so.6 'libsctp.so.1*'; do
		find "$stage/root" ! -type d -name "$pattern" -exec cp -L {} "$stage/out/" \;
	done
	mv -T "$stage/out" "$out" 2>/dev/null || [ -d "$out" ]
fi
echo "$out"
