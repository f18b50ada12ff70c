#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the named jobs need and this machine lacks, by apt; says what is missing where it can't.
# usage: install.sh JOB...     jobs: go kernel demo e2e vm bpf lint
set -euo pipefail
. "$(dirname "$0")/progress.sh"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

# Lines of "job  command-or-file  Debian package".
needs() {
	cat <<-'TABLE'
		kernel ip iproute2
		kernel tc iproute2
		kernel iperf3 iperf3
		demo ip iproute2
		demo tc iproute2
		demo iperf3 iperf3
		demo flock util-linux
		e2e ip iproute2
		e2e tc iproute2
		e2e iptables iptables
		e2e iperf3 iperf3
		e2e nsenter util-linux
		e2e runc runc
		e2e stress-ng stress-ng
		bpf clang-14 clang-14
		bpf llvm-strip-14 llvm-14
		bpf /usr/include/bpf/bpf_helpers.h libbpf-dev
		bpf /usr/include/linux/bpf.h linux-libc-dev
		lint clang-format-14 clang-format-14
		lint shellcheck shellcheck
		lint git git
	TABLE
}

have() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

check_go() {
	local want have
	want=$(sed -n 's/^go //p' "$(dirname "$0")/../../go.mod")
	command -v go >/dev/null || { say "missing: Go $want or newer, from your distribution or the Go project (in PATH or /usr/local/go)"; exit 1; }
	have=$(go env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
	[ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
		{ say "Go $have is too old: this project needs $want or newer"; exit 1; }
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		return 1
	fi
}

# Runs an installer that can say by itself what it needs, as root where that is possible.
as_root_or_say() {
	local command
	command=$("$1" --print)
	[ -z "$command" ] || as_root "$1" || { say "missing; run as root: $command"; exit 1; }
}

install_packages() {
	local log
	command -v apt-get >/dev/null || { say "missing: $* (Debian names). There is no apt-get here: install them by hand"; exit 1; }
	if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		say "missing: $*. Run as root: apt-get install $*"
		exit 1
	fi
	say "installing $* ..."
	log=$(mktemp)
	# Lists may be absent (containers) or old (404): ask apt to read them anew before the second try only.
	if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
		as_root apt-get update -q >"$log" 2>&1 </dev/null || true
		if ! with_progress "apt-get install" as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -q --no-install-recommends "$@" >>"$log" 2>&1 </dev/null; then
			tail -n 20 "$log" >&2
			say "apt-get install $* failed (its words are above)"
			exit 1
		fi
	fi
	rm -f "$log"
}

missing=()
for job in "$@"; do
	case $job in
	go) check_go ;;
	vm) as_root_or_say "$(dirname "$0")/../vm/install.sh" ;; # the QEMU runner knows its own needs
	kernel | demo | e2e | bpf | lint)
		while read -r name what package; do
			[ "$name" = "$job" ] || continue
			have "$what" || missing+=("$package")
		done < <(needs)
		;;
	*) say "install.sh: unknown job $job"; exit 2 ;;
	esac
done
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
install_packages "${missing[@]}"
