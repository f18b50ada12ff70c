#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One Kubernetes node: containerd, flanneld, kubelet and kube-proxy, kept running as systemd would. It is process 1 of its own mount,
# network, process, host-name and IPC namespaces; its root is a copy-on-write view of the machine's, so that whatever it writes is gone
# when it ends. The test gives it eth0.
# usage: node.sh NAME ADDRESS GATEWAY
#   in the environment: KUBE, PROGRAMS, IMAGES: folders of programs and image archives; PKI: of certificates and kubeconfigs; LOGS
set -euo pipefail
name=$1 address=$2 gateway=$3
PATH=$PROGRAMS:$KUBE:$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() { printf '%s: %s\n' "$name" "$*"; }

# Not of a tmpfs only: folders on other file systems (caches, the checkout) are bound at their own paths.
build_root() {
	mount --make-rprivate /
	local base=/run/kubepace-e2e-root dir
	mkdir -p "$base"
	mount -t tmpfs -o size=2g tmpfs "$base"
	mkdir -p "$base"/{upper,work,root}
	mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
	cd "$base/root"
	mkdir -p proc sys run tmp .old var/lib/{containerd,kubelet,cni} var/log etc/cni/net.d
	mount --rbind /dev dev
	mount -t proc proc proc
	# sysfs shows the network namespace that it was mounted in.
	mount -t sysfs sysfs sys
	mount --rbind /sys/fs/cgroup sys/fs/cgroup
	mount -t bpf bpf sys/fs/bpf
	# An overlay can't be the upper layer of another: containerd's snapshots need a file system of their own.
	for dir in run tmp var/lib/containerd var/lib/kubelet var/lib/cni var/log; do mount -t tmpfs tmpfs "$dir"; done
	for dir in "$KUBE" "$PROGRAMS" "$IMAGES" "$PKI" "$LOGS"; do
		mkdir -p ".$dir"
		mount --bind "$dir" ".$dir"
	done
	pivot_root . .old
	cd /
	umount -l /.old
	mount --make-rshared /
	mkdir -p /run/lock /run/flannel /run/netns /run/sysctl
}

# The kubelet writes these, and they are the whole machine's: it gets plain files instead.
shield_sysctls() {
	local pair file
	for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
		kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
		file=/run/sysctl/$(tr / _ <<<"${pair%=*}")
		echo "${pair#*=}" >"$file"
		mount --bind "$file" "/proc/sys/${pair%=*}"
	done
}

build_network() {
	until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
	hostname "$name"
	ip link set lo up
	ip addr add "$address/24" dev eth0
	ip link set eth0 up
	ip route add default via "$gateway"
	echo 1 >/proc/sys/net/ipv4/ip_forward
	# Built in, or a module that nobody has asked for yet.
	modprobe br_netfilter 2>/dev/null || true
	echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
}

# cgroup v1: a folder in each hierarchy, and cpuset's can't be empty. cgroup v2: one folder.
build_cgroup() {
	local dir
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		mkdir -p "/sys/fs/cgroup/$cgroup"
		return
	fi
	for dir in /sys/fs/cgroup/*/; do mkdir -p "$dir$cgroup"; done
	for dir in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$dir" >"/sys/fs/cgroup/cpuset/$cgroup/cpuset.$dir"; done
}

configure_containerd() {
	mkdir -p /etc/containerd
	cat >/etc/containerd/config.toml <<-TOML
		version = 3
		root = "/var/lib/containerd"
		state = "/run/containerd"
		disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"]
		[grpc]
		  address = "/run/containerd/containerd.sock"
		[plugins."io.containerd.cri.v1.images".pinned_images]
		  sandbox = "kubepace.test/pause:e2e"
		[plugins."io.containerd.cri.v1.runtime"]
		  restrict_oom_score_adj = true
		[plugins."io.containerd.cri.v1.runtime".cni]
		  bin_dirs = ["$PROGRAMS"]
		  conf_dir = "/etc/cni/net.d"
		[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
		  runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
		  BinaryName = "runc"
		  SystemdCgroup = false
	TOML
}

configure_kubelet() {
	mkdir -p /etc/kubernetes
	cat >/etc/kubernetes/kubelet.yaml <<-YAML
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		failCgroupV1: false
		failSwapOn: false
		cgroupDriver: cgroupfs
		cgroupRoot: /$cgroup
		enforceNodeAllocatable: []
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		address: $address
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
		authorization: {mode: Webhook}
		evictionHard: {memory.available: 1Mi, nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
		imageGCHighThresholdPercent: 100
		localStorageCapacityIsolation: false
		resolvConf: ""
		nodeStatusUpdateFrequency: 4s
		syncFrequency: 5s
	YAML
	# nf_conntrack_max and its kin are the whole machine's: 0 leaves them alone.
	cat >/etc/kubernetes/kube-proxy.yaml <<-YAML
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: iptables
		hostnameOverride: $name
		clusterCIDR: 10.244.0.0/16
		clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	YAML
	echo '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}' >/etc/kubernetes/flannel.json
}

# Runs a program for good; its pid is in /run/PROGRAM.pid.
supervise() {
	local program=$1
	shift
	while :; do
		"$program" "$@" >>"$LOGS/$name-$program.log" 2>&1 &
		echo $! >"/run/$program.pid"
		wait $! || true
		sleep 1
	done &
}

import_images() {
	local archive
	until ctr version >/dev/null 2>&1; do sleep 0.1; done
	for archive in "$IMAGES"/*.tar; do ctr -n k8s.io images import --local "$archive" >/dev/null; done
}

# What Flannel's own CNI plugin, which is not on the module proxy, makes of subnet.env: it hands everything to bridge.
configure_cni() {
	until [ -s /run/flannel/subnet.env ]; do sleep 0.1; done
	# shellcheck disable=SC1091
	. /run/flannel/subnet.env
	cat >/etc/cni/net.d/.new <<-JSON
		{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": $FLANNEL_MTU,
		   "ipam": {"type": "host-local", "ranges": [[{"subnet": "${FLANNEL_SUBNET%.1/*}.0/${FLANNEL_SUBNET#*/}"}]], "routes": [{"dst": "10.244.0.0/16"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	JSON
	mv /etc/cni/net.d/.new /etc/cni/net.d/10-flannel.conflist
}

cgroup=kubepace-e2e-$name
build_root
shield_sysctls
build_network
build_cgroup
configure_containerd
configure_kubelet
supervise containerd
import_images
say "containerd is up, images are imported"
NODE_NAME=$name supervise flanneld --kubeconfig-file "$PKI/flannel.kubeconfig" --net-config-path /etc/kubernetes/flannel.json --iface eth0
supervise kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig "$PKI/$name.kubeconfig" --hostname-override "$name" --node-ip "$address"
supervise kube-proxy --config /etc/kubernetes/kube-proxy.yaml
configure_cni
say "network configured"
wait
