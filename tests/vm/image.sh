#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the guest's file system for one kernel folder of fetch.sh: this machine's own busybox, bash, iproute2, iperf3,
# nft, iptables and friends with their shared libraries, the modules of modules.txt, and init. Prints the folder of
#   root.img (ext4, to be used as a throw-away copy) and initramfs.cpio (finds it)
# under <cache>/vm/, named by a hash of everything that goes in.
# usage: image.sh KERNELDIR [PROGRAM ...]    PROGRAM: more of this machine's programs, by name or path
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
kernel=$1
shift
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}/vm
release=$(cat "$kernel/release")
PATH=$PATH:/usr/sbin:/sbin

required=(bash busybox ip tc bridge ss iperf3 nft iptables kmod)
# Taken along where this machine has them.
optional=(bpftool conntrack ethtool ip6tables iptables-save iptables-restore ipset nstat openssl strace tcpdump wg xtables-nft-multi)

say() { printf '%s\n' "$*" >&2; }
die() { say "image.sh: $*"; exit 1; }

# Prints the files of the image that come from this machine: programs, their libraries, plug-ins and tables.
host_files() {
	local name path plugin
	for name in "${required[@]}" "$@"; do
		path=$(command -v "$name") || die "$name is missing: run $here/install.sh"
		echo "$path"
	done
	for name in "${optional[@]}"; do command -v "$name" || true; done
	for plugin in /usr/lib/x86_64-linux-gnu/xtables/lib*.so /etc/iproute2/* /usr/share/iproute2/* /etc/protocols /etc/services \
		/etc/ethertypes /usr/lib/x86_64-linux-gnu/libnss_files.so.2; do
		[ ! -f "$plugin" ] || echo "$plugin"
	done
}

# Adds the shared libraries of the programs on standard input. Plug-ins need none that their programs lack.
with_libraries() {
	tee "$work/plain"
	grep -E '/s?bin/' "$work/plain" | xargs -d '\n' ldd 2>/dev/null | grep -oE '/[^ :]+\.so[^ :]*' || true
}

# Copies a file of this machine to the same place in the image; a symlink brings its target along.
copy() {
	local path=$1
	mkdir -p "$root$(dirname "$path")"
	cp -L "$path" "$root$path"
}

# Copies the modules of modules.txt uncompressed, in their places, and lists those for init.
copy_modules() {
	local word name file target
	grep -vE '^(#|$)' "$here/modules.txt" | while read -r word; do
		name=${word#!}
		name=${name#+}
		# Virtual modules and built-in ones print no file.
		if ! modprobe -d "$kernel" -S "$release" --show-depends "$name" >"$work/depends" 2>/dev/null; then
			if [ "${word#!}" != "$word" ]; then die "kernel $release has no module $name"; fi
			# Packages without modules.builtin: a device that is built in cannot be told from one that is missing.
			continue
		fi
		sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/depends" >>"$work/modules"
		case $word in
		+* | !+*) if grep -q ^insmod "$work/depends"; then echo "$name" >>"$root/etc/vm-modules"; fi ;;
		esac
	done
	sort -u "$work/modules" | while read -r file; do
		target=$root/usr${file#"$kernel"}
		mkdir -p "$(dirname "$target")"
		case $file in
		*.xz) xz -dc "$file" >"${target%.xz}" ;;
		*.zst) zstd -qdc "$file" >"${target%.zst}" ;;
		*) cp "$file" "$target" ;;
		esac
	done
	for file in modules.order modules.builtin modules.builtin.modinfo; do
		[ ! -f "$kernel/lib/modules/$release/$file" ] || cp "$kernel/lib/modules/$release/$file" "$root/usr/lib/modules/$release/"
	done
	depmod -b "$root/usr" "$release" 2> >(grep -v 'could not open modules' >&2)
}

# The tree of the image.
fill_root() {
	local path name
	mkdir -p "$root"/{dev,etc,proc,root,run,sys,tmp,var/lib,var/log,mnt,opt,usr/{bin,sbin,lib,lib64,local/bin}}
	ln -s usr/bin "$root/bin"
	ln -s usr/sbin "$root/sbin"
	ln -s usr/lib "$root/lib"
	ln -s usr/lib64 "$root/lib64"
	ln -s ../run "$root/var/run"
	ln -s /proc/mounts "$root/etc/mtab"
	touch "$root/etc/vm-modules"
	while read -r path; do copy "$path"; done <"$work/files"
	for name in modprobe insmod rmmod lsmod depmod modinfo; do ln -s ../bin/kmod "$root/usr/sbin/$name"; done
	# busybox's shell would prefer its own ip and tc, whatever the path says.
	ln -s bash "$root/usr/bin/sh"
	# Every applet that is not there as a real program: busybox's own ip and tc know too little.
	for name in $(busybox --list); do
		[ -e "$root/usr/bin/$name" ] || [ -e "$root/usr/sbin/$name" ] || ln -s busybox "$root/usr/bin/$name"
	done
	echo "root:x:0:0:root:/root:/bin/bash" >"$root/etc/passwd"
	echo "root:x:0:" >"$root/etc/group"
	echo "127.0.0.1 localhost kubepace-vm" >"$root/etc/hosts"
	echo "hosts: files dns" >"$root/etc/nsswitch.conf"
	copy_modules
	cp "$here/init" "$root/usr/sbin/vm-init"
}

# The initramfs: busybox, early-init and what the root disk needs, in the order of loading.
fill_early() {
	local early=$1 name file
	mkdir -p "$early"/{bin,dev,root,modules}
	cp -L "$(command -v busybox)" "$early/bin/busybox"
	cp "$here/early-init" "$early/init"
	touch "$early/modules/order"
	for name in virtio_pci virtio_blk ext4; do
		# What is built in fails here where the package has no modules.builtin.
		{ modprobe -d "$root" -S "$release" --show-depends "$name" 2>/dev/null || true; } | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | awk '!seen[$0]++' | while read -r file; do
		cp "$file" "$early/modules/"
		echo "/modules/$(basename "$file")" >>"$early/modules/order"
	done
}

mkdir -p "$cache"
work=$(mktemp -d "$cache/.image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir "$root" "$work/out"
host_files "$@" | with_libraries | sort -u >"$work/files"
key=$({
	cat "$0" "$here"/{init,early-init,modules.txt} "$kernel/release" "$work/files"
	xargs -d '\n' stat -L -c '%n %s %Y' <"$work/files"
	stat -c '%s %Y' "$kernel/vmlinuz"
} | sha256sum | cut -c1-16)
image=$cache/$release-$key
if [ ! -d "$image" ]; then
	say "building the guest's file system for $release ..."
	fill_root
	fill_early "$work/early"
	(cd "$work/early" && find . -print0 | cpio --null --quiet --create --format=newc --owner=0:0) >"$work/out/initramfs.cpio"
	# 2 GiB for the guest to write to; the file is sparse.
	mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0,lazy_itable_init=1 -m 0 -N 16384 -d "$root" "$work/out/root.img" 2G >/dev/null
	mv -T "$work/out" "$image" 2>/dev/null || [ -d "$image" ]
	say "  $(du -sh "$image" | cut -f1) in $SECONDS s"
fi
touch "$image"
find "$cache" -maxdepth 1 -type d -name '[0-9]*-*' -mtime +14 -exec rm -rf {} +
echo "$image"
