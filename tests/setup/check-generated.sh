#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fails where compiling bpf/ anew changes what is committed. On a difference the new files stay, to be looked at.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/progress.sh
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
cp -a bpf "$before/"
go generate ./bpf
if ! diff -rq "$before/bpf" bpf >&2; then
	clang-14 --version | head -n 1 >&2
	say "bpf/ was not generated from its source, or by another compiler: run make generate and commit"
	exit 1
fi
