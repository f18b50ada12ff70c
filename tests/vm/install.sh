#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what fetch.sh, image.sh and run.sh need (Debian and Ubuntu); what is there already stays as it is.
# usage: install.sh [--print]    --print only prints the command line that is needed, or nothing
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need qemu-system-x86_64 qemu-system-x86
# Any busybox will not do: it has to run without shared libraries and to know modprobe, tar and ping.
dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q 'ok installed' || packages+=(busybox-static)
need ip iproute2
need iperf3 iperf3
need nft nftables
need iptables iptables
need cpio cpio
need modprobe kmod
need zstd zstd
need xz xz-utils
need mke2fs e2fsprogs
need flock util-linux
need dpkg-deb dpkg
[ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)

[ ${#packages[@]} -gt 0 ] || exit 0
command=(apt-get install -y --no-install-recommends "${packages[@]}")
if [ "${1:-}" = --print ]; then
	echo "${command[*]}"
	exit 0
fi
[ "$(id -u)" = 0 ] || { echo "install.sh: not root; run: sudo ${command[*]}" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
echo "installing ${packages[*]} ..." >&2
"${command[@]}" >&2 || { apt-get update >&2 && "${command[@]}" >&2; }
