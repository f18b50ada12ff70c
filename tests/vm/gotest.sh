#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the Go tests of packages inside the virtual machine: compiled here, statically; each package in one boot per
# kernel, all packages of a kernel in the same one, each in a folder that has its testdata/.
# usage: gotest.sh KERNEL[,KERNEL...] PACKAGE... [-- TESTFLAG...]      e.g. gotest.sh 5.10,7 ./tests/netlab/... -- -test.v
# Skipped tests fail there (CI=true), because the machine has everything. GOTEST_TIMEOUT: seconds per kernel (900).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '3,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
kernels=$1
shift
packages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do packages+=("$1"); shift; done
[ "${1:-}" != -- ] || shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tests"
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "${packages[@]}" >"$work/list"
while read -r package folder; do
	[ -n "$package" ] || continue
	echo "compiling the tests of $package ..." >&2
	name=${package//\//_}
	mkdir "$work/tests/$name"
	CGO_ENABLED=0 go test -c -o "$work/tests/$name/run" "$package" </dev/null
	[ ! -d "$folder/testdata" ] || cp -r "$folder/testdata" "$work/tests/$name/"
	echo "$package" >"$work/tests/$name/package"
done <"$work/list"
[ -n "$(ls "$work/tests")" ] || { echo "gotest.sh: no tests in ${packages[*]}" >&2; exit 1; }

cat >"$work/tests/all.sh" <<'GUEST'
failed=0
for folder in /tests/*/; do
	cd "$folder" || exit 1
	began=$SECONDS
	if ./run "$@"; then result='ok  '; else result=FAIL failed=1; fi
	printf '%s\t%s\t%ss on %s\n' "$result" "$(cat package)" $((SECONDS - began)) "$(uname -r)"
done
exit $failed
GUEST
failed=0
for kernel in ${kernels//,/ }; do
	"$here/run.sh" --kernel "$kernel" --timeout "${GOTEST_TIMEOUT:-900}" --tree "$work/tests:/tests" --env CI=true \
		-- bash /tests/all.sh "$@" || failed=1
done
exit $failed
