#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of the module for a short time each.
# usage: fuzz.sh [TIME]     such as 10s
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
time=${1:-10s}
found=0
while IFS=: read -r file target; do
	found=1
	say "fuzzing $target in $(dirname "$file") for $time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")"
done < <(git grep -oE --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/:func /:/')
[ "$found" = 1 ] || { say "no fuzz targets found"; exit 1; }
