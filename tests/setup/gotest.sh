#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `go test` that, in CI (CI=true), also fails where a test was skipped: there everything that a test needs is
# supposed to be present.
# usage: gotest.sh GO-TEST-ARGUMENTS...
set -euo pipefail
. "$(dirname "$0")/progress.sh"

[ "${CI:-}" = true ] || exec go test "$@"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
go test -v "$@" >"$log" 2>&1 || status=$?
if [ "$status" != 0 ]; then
	cat "$log"
	exit "$status"
fi
grep -E '^(ok|FAIL|\?|---|PASS: )[[:space:]]' "$log" | grep -v '^--- PASS' || true
if grep -E '^[[:space:]]*--- SKIP' -A 3 "$log" >&2; then
	say "skipped tests are failures in CI: see above"
	exit 1
fi
