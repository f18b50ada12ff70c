#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `go test` that, in CI (CI=true), also fails where a test was skipped: there everything that a test needs is
# supposed to be present. KUBEPACE_MAY_SKIP is a regular expression of reasons that are fine all the same, such as
# what this machine's kernel cannot do and `make test-vm` does instead.
# Vet is left to golangci-lint there.
# usage: gotest.sh GO-TEST-ARGUMENTS...
set -euo pipefail
. "$(dirname "$0")/progress.sh"

[ "${CI:-}" = true ] || exec go test "$@"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
go test -vet=off -v "$@" >"$log" 2>&1 || status=$?
if [ "$status" != 0 ]; then
	cat "$log"
	exit "$status"
fi
grep -E '^(ok|FAIL|\?)[[:space:]]' "$log" || true

# A skipped test's reason is the last line that it logged before its verdict.
skips() {
	awk -v may="${KUBEPACE_MAY_SKIP:-^$}" '
		/^[[:space:]]+[A-Za-z0-9_]+\.go:[0-9]+: / { reason = $0; sub(/^[[:space:]]+/, "", reason) }
		/^[[:space:]]*--- SKIP: / { print (reason ~ may ? "allowed" : "REFUSED") ": " $3 ": " reason }
		/^[[:space:]]*--- / { reason = "" }' "$log"
}
skips | sed 's/^/skipped, /'
# Not grep -q: it would end what writes to it, which is a failure of its own.
if skips | awk '/^REFUSED/ { found = 1 } END { exit !found }'; then
	say "skipped tests are failures in CI: see above"
	exit 1
fi
