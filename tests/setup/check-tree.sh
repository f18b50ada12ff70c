#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks what no linter knows of the committed files: licence headers, nothing about the machine that they were
# written on (its paths, the package mirrors that it uses), and nothing huge.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
PATH=$PATH:/usr/local/go/bin
bad=0
complain() {
	say "$1:"
	printf '%s\n' "$2" | sed 's/^/  /' >&2
	bad=1
}

top=$(pwd)
parent=$(dirname "$top")/
if [ "$parent" != // ] && [ "$parent" != /tmp/ ] && found=$(git grep -nF -- "$parent"); then
	complain "a path of this machine stands in the tree" "$found"
fi

# Hosts of the registries that this machine uses: the project must not depend on which they are.
hosts() {
	go env GOPROXY | tr -s ',|' '\n' | sed -n 's#^https\?://\([^/:]*\).*#\1#p'
	cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^[[:space:]]*#' |
		grep -oE 'https?://[^/ ]+' | sed 's#.*//##'
	cat "$HOME/.npmrc" /etc/npmrc 2>/dev/null | sed -n 's#.*registry *= *https\?://\([^/:]*\).*#\1#p'
}
for host in $(hosts | sort -u); do
	if found=$(git grep -nF -- "$host"); then
		complain "the host of a package registry stands in the tree" "$found"
	fi
done

found=
while IFS= read -r file; do
	head -n 5 "$file" | grep -qE 'SPDX-License-Identifier:|^// Code generated .* DO NOT EDIT' || found+="$file"$'\n'
done < <(git ls-files '*.go' '*.sh' '*.c' '*.h' .ci/run Makefile)
[ -z "$found" ] || complain "no SPDX-License-Identifier in the first lines" "${found%$'\n'}"

found=$(git ls-files -z | xargs -0 -r du -k 2>/dev/null | awk '$1 > 1024')
[ -z "$found" ] || complain "files over 1 MiB" "$found"
exit $bad
