#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs one command in a QEMU virtual machine (no KVM needed) with a Debian kernel, as root, and exits with its status.
#
# usage: run.sh --kernel 5.10|6.1|6.12|7 [option ...] -- COMMAND [ARG ...]
#   --kernel V          kernel of fetch.sh, fetched if it is not there yet; or a folder laid out like one
#   --cpus N            processors (2)
#   --memory MIB        memory (1024)
#   --steady            one processor, and a clock that counts instructions, one a nanosecond: what else runs on this
#                       machine changes no measurement, and waiting takes no time; slow where the guest is busy
#   --timeout S         seconds from power-on until the machine is killed and run.sh exits with 124 (600)
#   --file SRC[:DST]    a file for the guest, at DST (default: /root/NAME), with its mode; may be given often
#   --tree SRC:DST      a folder for the guest; what DST held before is hidden
#   --out GUEST:HOST    after the command, whatever it returned, copy the folder GUEST into HOST; may be given often
#   --env NAME=VALUE    an environment variable of the command
#   --with PROGRAM      one more program of this machine, with its shared libraries
#   --kernel-log FILE   keep the kernel's messages there; without it they are shown only when the machine fails
# The guest has bash, iproute2, iperf3, nft, iptables, busybox for the rest, /sys/fs/bpf, cgroup v2, 2 GiB of throw-away disk and no
# network. Files and folders given may be written to; the changes are gone afterwards. Both outputs of the command come
# out on standard output as they are written; run.sh's own lines go to standard error.
# Exit status: the command's, or 124 timeout, 125 the machine failed or could not start, 130 interrupted.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
kernel='' cpus=2 memory=1024 timeout=600 kernel_log=''
clock=(-accel 'tcg,thread=multi')
files=() trees=() outs=() envs=() programs=()

say() { printf 'vm: %s\n' "$*" >&2; }
fail() { say "$*"; exit 125; }

while [ $# -gt 0 ]; do
	case $1 in
	--help | -h) sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
	--) shift; break ;;
	--steady) clock=(-accel 'tcg,thread=single' -icount 'shift=0,sleep=off') cpus=1; shift; continue ;;
	--*) [ $# -ge 2 ] || fail "$1 wants a value; see run.sh --help" ;;
	*) fail "unknown argument $1 (the command comes after --); see run.sh --help" ;;
	esac
	case $1 in
	--kernel) kernel=$2 ;;
	--cpus) cpus=$2 ;;
	--memory) memory=$2 ;;
	--timeout) timeout=$2 ;;
	--file) files+=("$2") ;;
	--tree) trees+=("$2") ;;
	--out) outs+=("$2") ;;
	--env) envs+=("$2") ;;
	--with) programs+=("$2") ;;
	--kernel-log) kernel_log=$2 ;;
	*) fail "unknown option $1; see run.sh --help" ;;
	esac
	shift 2
done
[ -n "$kernel" ] || fail "--kernel is missing; see run.sh --help"
[ $# -gt 0 ] || fail "no command after --; see run.sh --help"
missing=$("$here/install.sh" --print)
[ -z "$missing" ] || fail "packages are missing: run tests/vm/install.sh, or: $missing"

# Puts one --file or --tree below $work/disk and notes where the guest binds it.
place() {
	local kind=$1 number=$2 source=${3%%:*} target=${3#*:}
	[ "$target" != "$3" ] || target=/root/$(basename "$source")
	[ -e "$source" ] || fail "$source does not exist"
	case $target in /*) ;; *) fail "$target must be an absolute path in the guest" ;; esac
	# Links cost nothing where the cache and the source share a file system.
	if [ "$kind" = tree ]; then
		[ -d "$source" ] || fail "--tree $source is not a folder"
		cp -al "$source" "$work/disk/$number" 2>/dev/null || cp -a "$source" "$work/disk/$number"
	else
		[ -f "$source" ] || fail "--file $source is not a file"
		cp -lL "$source" "$work/disk/$number" 2>/dev/null || cp -L "$source" "$work/disk/$number"
	fi
	printf '%s\t%s\t%s\n' "$kind" "$number" "$target" >>"$work/disk/binds"
}

# Writes the job's disk: command, files, folders. Sparse, with 64 MiB and 1024 inodes to spare.
make_disk() {
	local number=0 item size inodes
	mkdir "$work/disk"
	: >"$work/disk/binds"
	: >"$work/disk/outs"
	for item in ${files[@]+"${files[@]}"}; do place file $((number += 1)) "$item"; done
	for item in ${trees[@]+"${trees[@]}"}; do place tree $((number += 1)) "$item"; done
	for item in ${outs[@]+"${outs[@]}"}; do
		[ "${item#*:}" != "$item" ] || fail "--out wants GUESTFOLDER:HOSTFOLDER"
		echo "${item%%:*}" >>"$work/disk/outs"
	done
	{
		for item in ${envs[@]+"${envs[@]}"}; do printf 'export %q\n' "$item"; done
		printf 'exec'
		printf ' %q' "$@"
		printf '\n'
	} >"$work/disk/command"
	[ $number -eq 0 ] || say "disk: $(du -sh --apparent-size "$work/disk" | cut -f1) of files"
	size=$(du -s --apparent-size -B1M "$work/disk" | cut -f1)
	inodes=$(find "$work/disk" | wc -l)
	mke2fs -q -t ext4 -O ^has_journal -m 0 -N $((inodes + 1024)) -d "$work/disk" "$work/disk.img" $((size * 105 / 100 + 64))M >/dev/null
	rm -rf "$work/disk"
}

# Starts QEMU in the background and sets $qemu. Each port is a chardev that writes to a file or FIFO of $work.
start() {
	local ports=() i=0 item
	mkfifo "$work/output" "$work/status"
	exec 5<>"$work/status"
	cat "$work/output" &
	printer=$!
	for item in ${outs[@]+"${outs[@]}"}; do
		ports+=(-chardev "file,id=out$i,path=$work/out$i" -device "virtserialport,chardev=out$i,name=out$i")
		i=$((i + 1))
	done
	# softlockup_panic: a processor that hangs for a minute ends the machine, which is 125, and no test's failure.
	# cmpxchg16b (cx16) of QEMU 7 is broken with two threads; five-level page tables only cost time.
	# pdeathsig: nobody's SIGKILL for this script leaves a machine running.
	TMPDIR=$work setpriv --pdeathsig KILL qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -monitor none \
		"${clock[@]}" -cpu max,-cx16,-la57 -smp "$cpus" -m "$memory" \
		-kernel "$directory/vmlinuz" -initrd "$image/initramfs.cpio" \
		-append "console=ttyS0 loglevel=5 panic=-1 oops=panic random.trust_cpu=on mitigations=off tsc=reliable net.ifnames=0 watchdog_thresh=30 softlockup_panic=1" \
		-drive "file=$image/root.img,if=none,id=root,format=raw,cache=unsafe,snapshot=on" -device virtio-blk-pci,drive=root \
		-drive "file=$work/disk.img,if=none,id=job,format=raw,cache=unsafe" -device virtio-blk-pci,drive=job \
		-serial "file:$work/kernel.log" -device virtio-rng-pci -device virtio-serial-pci,max_ports=31 \
		-chardev "file,id=status,path=$work/status" -device virtserialport,chardev=status,name=status \
		-chardev "file,id=output,path=$work/output" -device virtserialport,chardev=output,name=output \
		${ports[@]+"${ports[@]}"} </dev/null >"$work/qemu.log" 2>&1 5>&- &
	qemu=$!
}

# Reads the guest's status lines until QEMU is gone; sets $status (empty: the machine failed).
follow() {
	local word value patience=1 began=$EPOCHREALTIME
	status=''
	while :; do
		if read -r -t $patience word value <&5; then
			case $word in
			start) say "$(cat "$directory/release") up after $(awk "BEGIN{printf \"%.1f\", $EPOCHREALTIME - $began}") s (guest time $value s)" ;;
			exit) status=$value patience=0.1 ;;
			esac
		elif ! kill -0 $qemu 2>/dev/null; then
			break
		fi
		if awk "BEGIN{exit !($EPOCHREALTIME - $began > $timeout)}"; then
			show_log
			say "TIMEOUT: killed after $timeout s: $*"
			status=124
			break
		fi
	done
}

show_log() {
	[ ! -s "$work/qemu.log" ] || sed 's/^/qemu: /' "$work/qemu.log" >&2
	[ ! -s "$work/kernel.log" ] || tail -n 60 "$work/kernel.log" | tr -d '\r' | sed 's/^/kernel: /' >&2
}

# shellcheck disable=SC2317 # run by the trap
stop() {
	trap '' INT TERM HUP # who ends a group of processes tells each of them, more than once
	[ -z "${qemu:-}" ] || { kill -KILL "$qemu" && wait "$qemu"; } 2>/dev/null || true
	[ -z "${printer:-}" ] || kill "$printer" 2>/dev/null || true
	[ -z "$kernel_log" ] || [ ! -f "$work/kernel.log" ] || tr -d '\r' <"$work/kernel.log" >"$kernel_log"
	rm -rf "$work"
}

if [ -d "$kernel" ]; then directory=$kernel; else directory=$("$here/fetch.sh" "$kernel") || fail "no kernel $kernel: see above"; fi
image=$("$here/image.sh" "$directory" ${programs[@]+"${programs[@]}"}) || fail "no image for kernel $kernel: see above"
find "$(dirname "$image")" -maxdepth 1 -name '.run.*' -mmin +1440 -exec rm -rf {} +
work=$(mktemp -d "$(dirname "$image")/.run.XXXXXX")
trap stop EXIT
trap 'say "interrupted"; exit 130' INT TERM HUP
make_disk "$@"
start
follow "$@"
kill -KILL $qemu 2>/dev/null || true
wait $qemu 2>/dev/null || true
wait $printer || true
if [ -z "$status" ]; then
	show_log
	fail "the machine stopped before the command ended"
fi
i=0
for item in ${outs[@]+"${outs[@]}"}; do
	mkdir -p "${item#*:}"
	tar -xf "$work/out$i" -C "${item#*:}" --no-same-owner || say "no files came back from ${item%%:*}"
	i=$((i + 1))
done
exit "$status"
