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
# The one thing that a test may lack: fq in the machine's own kernel. Those tests run in QEMU, where a missing fq fails.
if ! awk '
	/^ *[A-Za-z0-9_]+\.go:[0-9]+: / { reason = $0 }
	/^ *--- SKIP/ {
		if (reason ~ /needs CONFIG_NET_SCH_FQ/) { left++ } else { print reason; print; bad = 1 }
		reason = ""
	}
	END { if (left) print left " tests need fq, which this kernel lacks: make test-vm runs them"; exit bad }' "$log" >&2; then
	say "skipped tests are failures in CI: see above"
	exit 1
fi
