# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts: messages to people, and long commands that say that they live.

# Prints a message to standard error: standard output is for what the script returns.
say() { printf '%s\n' "$*" >&2; }

# with_progress NAME CMD...: runs CMD and prints a line every 20 s, so that nobody takes a long build for a hang.
with_progress() {
	local name=$1 start=$SECONDS status=0 pid
	shift
	"$@" &
	pid=$!
	trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		if [ $(((SECONDS - start) % 20)) -eq 19 ]; then
			say "  ... still at $name, $((SECONDS - start)) s"
		fi
	done
	trap - INT TERM
	wait "$pid" || status=$?
	return "$status"
}
