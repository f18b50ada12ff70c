#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks fetch.sh and run.sh themselves, on the kernels named or all four: boots, fq, exit status, files both ways,
# SNAT, a static Go test binary, timeout, interruption, panic.
# usage: check.sh [5.10|6.1|6.12|7 ...]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- 5.10 6.1 6.12 7
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# expect NAME STATUS PATTERN COMMAND...: the command ends with the status and its output (both) matches.
expect() {
	local name=$1 status=$2 pattern=$3 got=0 began=$SECONDS
	shift 3
	"$@" >"$work/log" 2>&1 || got=$?
	if [ "$got" = "$status" ] && { [ -z "$pattern" ] || grep -q -- "$pattern" "$work/log"; }; then
		passed=$((passed + 1))
		echo "ok    $name ($((SECONDS - began)) s)"
	else
		failed=$((failed + 1))
		echo "FAIL  $name: status $got, want $status and \"$pattern\":"
		sed 's/^/      /' "$work/log"
	fi
}

# Runs in the guest: the tools that the datapath's tests and the demo rely on.
cat >"$work/guest.sh" <<'GUEST'
set -euo pipefail
uname -r
tc qdisc add dev lo root fq
tc qdisc show dev lo | grep -q '^qdisc fq'
mount | grep -q 'on /sys/fs/bpf'
[ "$(sysctl -n net.ipv4.tcp_congestion_control)" = cubic ]
sysctl -n net.ipv4.tcp_available_congestion_control | grep -q bbr
[ "$(sysctl -n net.core.bpf_jit_enable)" = 1 ]
ip netns add a
ip link add v0 type veth peer name v1 netns a
ip addr add 192.0.2.1/30 dev v0 && ip link set v0 up
ip -n a addr add 192.0.2.2/30 dev v1 && ip -n a link set v1 up && ip -n a link set lo up
tc qdisc add dev v0 clsact
tc qdisc add dev v0 root netem delay 1ms
for type in "bridge" "vxlan id 1 dstport 4789 local 192.0.2.1" "geneve id 1 remote 192.0.2.2" dummy bond ifb "vlan id 5"; do
	parent=''; [ "$type" != "vlan id 5" ] || parent="link v0"
	# shellcheck disable=SC2086
	ip link add ${parent} t0 type $type && ip link del t0
done
nft add table ip nat
nft add chain ip nat post '{ type nat hook postrouting priority 100; }'
nft add rule ip nat post oifname v0 masquerade
iptables -t nat -A POSTROUTING -o v0 -j MASQUERADE
ping -c 1 -W 5 192.0.2.2 >/dev/null
ip netns exec a iperf3 -s -D -1
sleep 1
iperf3 -c 192.0.2.2 -t 1 -f m | grep receiver
mkdir -p /tmp/results/sub && cp /root/in /tmp/results/sub/ && cp /data/tree/x "/tmp/results/with space"
echo to-stderr >&2
echo "GREETING=$GREETING"
/root/selftest -test.v
echo all-done
exit 7
GUEST
head -c 30000000 /dev/urandom >"$work/in"
mkdir -p "$work/tree"
echo tree >"$work/tree/x"
mkdir "$work/go"
cat >"$work/go/self_test.go" <<'GO'
package self

import "testing"

func TestStatic(t *testing.T) { t.Log("a Go test binary runs") }
GO
(cd "$work/go" && printf 'module self\n\ngo 1.21\n' >go.mod && CGO_ENABLED=0 go test -c -o "$work/selftest" .)

for v in "$@"; do
	rm -rf "$work/out"
	expect "$v: tools, files, status" 7 all-done "$here/run.sh" --kernel "$v" --timeout 240 --file "$work/in" \
		--file "$work/guest.sh:/root/guest.sh" --tree "$work/tree:/data/tree" --file "$work/selftest" \
		--out "/tmp/results:$work/out" --env GREETING="hello there" -- bash /root/guest.sh
	grep -E 'up after|GREETING|receiver|to-stderr|^--- PASS' "$work/log" | sed 's/^/      /' || true
	expect "$v: results came back" 0 '' cmp "$work/in" "$work/out/sub/in"
	expect "$v: name with a space" 0 tree cat "$work/out/with space"
	expect "$v: false" 1 'up after' "$here/run.sh" --kernel "$v" --timeout 120 -- false
done
expect "timeout" 124 TIMEOUT "$here/run.sh" --kernel "$1" --timeout 15 -- sleep 1000
expect "panic is reported" 125 'stopped before' "$here/run.sh" --kernel "$1" --timeout 60 -- sh -c 'echo c >/proc/sysrq-trigger; sleep 60'
expect "interruption" 130 interrupted timeout --preserve-status -s INT 12 "$here/run.sh" --kernel "$1" -- sleep 1000
expect "missing file" 125 'does not exist' "$here/run.sh" --kernel "$1" --file /nowhere -- true
cache=${KUBEPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubepace}/vm
expect "nothing left behind" 0 '' test -z "$(find "$cache" -maxdepth 1 -name '.run.*' -mmin -1)"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
