#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All static checks; runs every one before it fails.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
. tests/setup/progress.sh
failed=()
check() {
	local name=$1
	shift
	if "$@"; then say "lint: $name passed"; else failed+=("$name"); fi
}

go_code() {
	local linter
	linter=$(tests/tools/build.sh | tail -n 1) && "$linter" run --allow-parallel-runners ./...
}
shell_scripts() {
	git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --external-sources --source-path=SCRIPTDIR --severity=warning
}
c_format() { git ls-files -z 'bpf/*.c' 'bpf/*.h' | xargs -0 clang-format-14 --dry-run --Werror; }
modules() { go mod tidy -diff && go mod verify >/dev/null; }

check "Go (golangci-lint)" go_code
check "shell (shellcheck)" shell_scripts
check "C (clang-format)" c_format
check "go.mod" modules
check "tree" tests/setup/check-tree.sh
[ ${#failed[@]} -eq 0 ] || { say "lint: failed: ${failed[*]}"; exit 1; }
