#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gets Debian kernels as packages, unpacked and never installed, and prints the folder of each on standard output:
#   <cache>/kernels/<version>/{vmlinuz,config,release,lib/modules/<release>/}
# usage: fetch.sh [--refresh] 5.10|6.1|6.12|7|all ...
#
# Where packages come from: tests/setup/debian.sh.
set -euo pipefail

cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}
kernels=$cache/kernels

say() { printf '%s\n' "$*" >&2; }
die() { say "fetch.sh: $*"; exit 1; }
. "$(dirname "$0")/../setup/debian.sh"

# Suites to ask for one version, newest packages winning whatever their suite.
suites_of() {
	case $1 in
	5.10) echo bullseye bullseye-security ;;
	6.1) echo bookworm bookworm-security ;;
	6.12) echo bookworm-backports trixie ;;
	7) echo trixie-backports ;;
	*) die "unknown kernel $1: choose from 5.10, 6.1, 6.12, 7" ;;
	esac
}

# Newest package whose name has the prefix and is a signed cloud kernel.
newest() {
	apt_own apt-cache pkgnames "$1" | grep -E "^$1[0-9.+~a-z-]*-cloud-amd64\$" | grep -vE 'unsigned|dbg|deb11\.' | sort -V | tail -n 1
}

# Names of the packages for one version.
packages_of() {
	local image
	if [ "$1" = 7 ]; then
		image=$(newest linux-binary-7.)
		[ -n "$image" ] && echo "$image linux-modules-${image#linux-binary-}"
	else
		image=$(newest "linux-image-$1.")
		[ -n "$image" ] && echo "$image"
	fi
}

fetch() {
	local version=$1 start=$SECONDS stage packages release
	stage=$(mktemp -d "$kernels/.fetch-$version.XXXXXX")
	apt_state=$stage/apt
	trap 'rm -rf "$stage"' EXIT
	say "kernel $version: reading the lists of $(suites_of "$version") ..."
	# shellcheck disable=SC2046 # the suites are words
	update_lists $(suites_of "$version")
	packages=$(packages_of "$version") || true
	[ -n "$packages" ] || die "no cloud kernel $version in the suites $(suites_of "$version")"
	say "kernel $version: downloading $packages ..."
	# shellcheck disable=SC2086 # the packages are words
	(cd "$stage" && apt_own apt-get download $packages >download.log 2>&1) ||
		{ cat "$stage/download.log" >&2; die "download of $packages failed"; }
	mkdir "$stage/root" "$stage/kernel"
	for deb in "$stage"/*.deb; do
		say "kernel $version: unpacking $(basename "$deb") ($(du -h "$deb" | cut -f1)) ..."
		dpkg-deb -x "$deb" "$stage/root"
	done
	[ -d "$stage/root/lib" ] || mv "$stage/root/usr/lib" "$stage/root/lib"
	release=$(cd "$stage/root/lib/modules" && echo *)
	mkdir "$stage/kernel/lib"
	cp "$(find "$stage/root" -name 'vmlinuz*' -type f | head -n 1)" "$stage/kernel/vmlinuz"
	cp "$(find "$stage/root" -name 'config-*' -type f | head -n 1)" "$stage/kernel/config" 2>/dev/null || true
	mv "$stage/root/lib/modules" "$stage/kernel/lib/"
	rm -f "$stage/kernel/lib/modules/$release/"{build,source,vmlinuz}
	# Recent packages leave out modules.order and modules.builtin; depmod works without them but complains.
	depmod -b "$stage/kernel" "$release" 2> >(grep -v 'could not open modules' >&2)
	echo "$release" >"$stage/kernel/release"
	rm -rf "${kernels:?}/$version"
	mv "$stage/kernel" "$kernels/$version"
	rm -rf "$stage"
	trap - EXIT
	say "kernel $version: $release ready in $((SECONDS - start)) s"
}

refresh=no
[ "${1:-}" = --refresh ] && { refresh=yes; shift; }
[ $# -gt 0 ] || die "usage: fetch.sh [--refresh] 5.10|6.1|6.12|7|all ..."
[ "$*" = all ] && set -- 5.10 6.1 6.12 7
[ "$(uname -m)" = x86_64 ] || die "only amd64 machines, this one is $(uname -m)"
PATH=$PATH:/usr/sbin:/sbin
for version in "$@"; do suites_of "$version" >/dev/null; done

mkdir -p "$kernels"
for version in "$@"; do
	if [ $refresh = yes ] || [ ! -f "$kernels/$version/release" ]; then
		for tool in apt-get dpkg-deb depmod flock; do
			command -v $tool >/dev/null || die "$tool is missing: run $(dirname "$0")/install.sh"
		done
		(
			flock -w 1800 9 || die "another fetch has held $kernels/.lock for half an hour"
			if [ $refresh = yes ] || [ ! -f "$kernels/$version/release" ]; then fetch "$version"; fi
		) 9>"$kernels/.lock"
	fi
	echo "$kernels/$version"
done
