#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the tests that need a kernel on each of the kernels given, in QEMU, and prints one table: test x kernel, with
# the mode that was tested. A kernel from 5.18 on must pace, an older one police: anything else is a failure, and so
# is a skipped test. Each kernel boots twice, at the same time: tests/datapath, which measures traffic, runs on a clock
# that counts instructions, where no other program of this machine can be seen; the rest, and what wants two processors
# (TestTwoSenders, and TestUpgradeUnderLoad of enforcer/datapath), runs in real time. Tests run with -short, which leaves
# out what a kernel cannot change; FULL=6.12 (a kernel, or all) runs the long versions there; QUICK="5.10 7" (kernels, or all)
# leaves out more: what another kernel of the run has.
# usage: PACKAGES="./bpf ..." suite.sh KERNEL...
set -euo pipefail
cd "$(dirname "$0")/../.."

# As folders below the top; the Makefile has the list.
read -ra packages <<<"${PACKAGES//.\//}"
out=build/test-vm
rm -rf "$out"
mkdir -p "$out"

# Where the mode must be one, the test binary fails with the other.
mode_of() {
	case $1 in
	5.10) echo policing ;;
	*) echo pacing ;;
	esac
}

tests/datapath/next-version.sh bin/kubepace-enforcer-next
files=(--file bin/kubepace-enforcer --file bin/kubepace-enforcer-next)
for package in "${packages[@]}"; do
	name=${package//\//-}.test
	CGO_ENABLED=0 go test -c -ldflags='-s -w' -o "$out/$name" "./$package"
	files+=(--file "$out/$name:/root/tests/$name")
	[ ! -d "$package/testdata" ] || files+=(--tree "$package/testdata:/tmp/$name/testdata")
done

# In the guest: every test binary, in its own folder, all of them even if one fails. What measures traffic has the
# virtual machine for itself; the others run two at a time, and show what they say when all have ended. STEADY: there is
# the counting clock, and one processor.
cat >"$out/all.sh" <<'GUEST'
two_processors='^TestTwoSenders$'
one() {
	local name=${1##*/} only=. skip='^$' status=0 start=$SECONDS
	# Of the command, what starts an agent; the rest reads files of the checkout.
	# Each load of the program takes an emulated processor a second or two to verify.
	case $name:${KUBEPACE_QUICK:-} in
	tests-*) if [ -n "$STEADY" ]; then skip=$two_processors; else only=$two_processors; fi ;;
	cmd-*:true) only='TestAgentPaces|TestAgentStandsDown' ;; # the rest is like TestAgent and TestSIGKILL of tests/datapath
	cmd-*) only=Agent ;;
	enforcer-datapath*:true) only='TestLifecycle|TestClsact|TestCleanup|TestFirstByTCX|TestUpgradeKeepsState|TestWhatWasTakenOffComesBack|TestWhatWentBeforeOursIsPassed' ;;
	bpf*:true) skip='TestUsesTheLimit|TestSparseAmongStrangers|TestExtremes' ;; # long, and no kernel changes them
	esac
	echo "## $name"
	mkdir -p "/tmp/$name"
	(cd "/tmp/$name" && exec "$1" -test.v -test.run="$only" -test.skip="$skip" -test.short="${SHORT:-false}" -test.parallel 4 -test.timeout 20m) || status=1
	echo "took $((SECONDS - start)) s${STEADY:+ of its own time}"
	return $status
}
status=0
running=0
for test in /root/tests/*.test; do
	case ${STEADY:+steady}:$test in
	steady:* | */tests-*) continue ;;
	esac
	[ $running -lt 2 ] || { wait -n || status=1; running=1; }
	one "$test" >"$test.log" 2>&1 &
	running=$((running + 1))
done
while [ $running -gt 0 ]; do
	wait -n || status=1
	running=$((running - 1))
done
cat /root/tests/*.log 2>/dev/null || true
for test in /root/tests/tests-*.test; do one "$test" || status=1; done
exit $status
GUEST

# A line `PACKAGE.NAME RESULT` for each test that is not a subtest. A test that says "left out: WHY" tested nothing.
results() {
	awk '/^## / { package = substr($2, 1, length($2) - 5); split("", left) }
		/^=== (RUN|NAME|CONT) / { split($3, names, "/") } # tests may run beside each other
		/_test\.go:[0-9]+: left out: / { left[names[1]] = 1 }
		/^--- (PASS|FAIL|SKIP): / { print package "." $3, (left[$3] && $2 == "PASS:" ? "left-out" : substr($2, 1, 4)) }' "$1"
}

# What each failed test said, subtests included: the lines that boot shows are chosen for their figures.
said() {
	awk '/^## / { package = substr($2, 1, length($2) - 5); split("", lines) }
		/^=== (RUN|NAME|CONT) / { split($3, names, "/"); next }
		/^--- FAIL: / { printf "\n%s.%s said:\n%s", package, $3, lines[$3]; lines[$3] = "" }
		/^panic: / { printf "\n%s.%s said:\n%s", package, names[1], lines[names[1]]; panic = 1 }
		/^## / { panic = 0 }
		panic { print; next }
		!/^(=== |--- (PASS|SKIP)| *--- |PASS$|FAIL$)/ { lines[names[1]] = lines[names[1]] $0 "\n" }' "$1"
}

# Whether a line matches. It reads them all: grep -q would end what writes to it, and that is a failure here (pipefail).
any() { awk -v "pattern=$1" '$0 ~ pattern { found = 1 } END { exit !found }'; }

# Boots a kernel and runs its tests there; what went wrong with the machine itself is in LOG's .err.
# usage: boot KERNEL LOG [--steady]
boot() {
	local kernel=$1 log=$2 short=true quick='' mark=${3:+steady: }
	shift 2
	case ${FULL:-} in all | "$kernel") short=false ;; esac
	case " ${QUICK:-} " in " all " | *" $kernel "*) quick=true ;; esac
	# pdeathsig: who interrupts this script ends its machines.
	setpriv --pdeathsig TERM tests/vm/run.sh "$@" --kernel "$kernel" --timeout 1800 --env CI=true --env "STEADY=$*" --env "SHORT=$short" --env "KUBEPACE_QUICK=$quick" \
		--env "KUBEPACE_EXPECT_MODE=$(mode_of "$kernel")" --env KUBEPACE_ENFORCER=/root/kubepace-enforcer \
		--env KUBEPACE_ENFORCER_NEXT=/root/kubepace-enforcer-next --env KUBEPACE_REQUIRE_FQ=true "${files[@]}" --file "$out/all.sh" \
		-- bash /root/all.sh 2> >(tee "${log%.log}.err" >&2) >"$log" &
	local machine=$! status=0
	tail -n +1 -F --pid=$machine "$log" 2>/dev/null |
		grep --line-buffered -E '^(##|took|--- |    --- FAIL|panic:|FAIL|[a-z_]+_test.go)|Mbit/s|want|lost;' | sed -u "s/^/$mark/" || true
	wait $machine || status=$?
	return $status
}

# The same, once more where it was not a test that failed but the machine (125: no kernel to be had, QEMU died).
boots() {
	local status=0
	boot "$@" || status=$?
	[ $status = 125 ] || return $status
	echo "== Linux $1${3:+ ($3)}: the machine failed; once more =="
	boot "$@"
}

failed=0
reasons=()
for kernel in "$@"; do
	echo "== Linux $kernel ($(mode_of "$kernel")) =="
	start=$SECONDS
	boots "$kernel" "$out/$kernel-steady.log" --steady &
	steady=$!
	trap 'kill $steady 2>/dev/null || true' EXIT
	for machine in "$kernel" "$kernel-steady"; do
		status=0
		if [ "$machine" = "$kernel" ]; then boots "$kernel" "$out/$kernel.log" || status=$?; else wait $steady || status=$?; fi
		[ $status != 0 ] || continue
		failed=1 reasons+=("Linux $machine: status $status (124: out of time, 125: the machine failed)")
		[ $status -lt 124 ] || reasons+=("the end of its messages:" "$(tail -n 15 "$out/$machine".{err,log} 2>&1)")
	done
	results "$out/$kernel.log" | any '^tests-datapath[.]TestTwoSenders PASS$' || { failed=1 reasons+=("Linux $kernel: no result of TestTwoSenders on two processors"); }
	results "$out/$kernel-steady.log" | any '^tests-datapath[.].* PASS$' || { failed=1 reasons+=("Linux $kernel: no results of tests/datapath on the counting clock"); }
	{ echo; cat "$out/$kernel-steady.log"; } >>"$out/$kernel.log"
	said "$out/$kernel.log"
	# Skips that run.sh's status cannot know of.
	if results "$out/$kernel.log" | any ' SKIP$'; then failed=1 reasons+=("Linux $kernel: skipped tests"); fi
	for package in "${packages[@]}"; do
		results "$out/$kernel.log" | any "^${package//\//-}[.].* PASS\$" || { failed=1 reasons+=("Linux $kernel: no results of $package"); }
	done
	echo "== Linux $kernel took $((SECONDS - start)) s =="
done

printf '\n%-60s' test
for kernel in "$@"; do printf '%-18s' "$kernel"; done
echo
for name in $(for kernel in "$@"; do results "$out/$kernel.log"; done | awk '{print $1}' | sort -u); do
	printf '%-60s' "$name"
	for kernel in "$@"; do
		result=$(results "$out/$kernel.log" | awk -v n="$name" '$1 == n && !found {print $2; found = 1}')
		printf '%-18s' "$(mode_of "$kernel") ${result:-missing}"
	done
	echo
done
[ ${#reasons[@]} = 0 ] || printf '%s\n' "${reasons[@]}"
exit $failed
