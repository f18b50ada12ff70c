# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts that run many steps: a failed one stops none, and the summary has the time and the verdict of each.
# The caller sets $report, a folder for one log per step and summary.txt.
# shellcheck disable=SC2154 # the caller sets $report
rm -rf "$report"
mkdir -p "$report"
failed=0
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM HUP

# Runs a command and keeps its exit status and its times. usage: timed NAME COMMAND...
timed() {
	local TIMEFORMAT='%0R %0U %0S' status=0 name=$1
	shift
	# pdeathsig: nothing stays when this script is killed.
	{ time setpriv --pdeathsig TERM "$@" 2>&1; } 2>"$report/.$name.time" || status=$?
	return $status
}

# Adds a line to the summary. usage: record NAME STATUS
record() {
	local verdict=passed wall user sys
	[ "$2" = 0 ] || { verdict="FAILED ($2)"; failed=1; }
	read -r wall user sys <"$report/.$1.time"
	printf '%-16s %5d s %5d s  %s\n' "$1" "$wall" $((user + sys)) "$verdict" | tee -a "$report/.steps"
	rm -f "$report/.$1.time"
}

# Runs one step that has the machine for itself. usage: step NAME COMMAND...
step() {
	local status=0
	printf '\n=== %s: %s\n' "$1" "${*:2}"
	timed "$@" | tee "$report/$1.log" || status=$?
	record "$1" $status
}

# Runs steps two at a time, in the order given, and shows what each one said when it has ended: for what measures no
# time of this machine. usage: two_at_once "NAME COMMAND..." ...
two_at_once() {
	local -A running=()
	local pid status words tick
	sleep 60 &
	tick=$!
	while [ $# -gt 0 ] || [ ${#running[@]} -gt 0 ]; do
		if [ $# -gt 0 ] && [ ${#running[@]} -lt 2 ]; then
			read -ra words <<<"$1"
			shift
			printf '\n=== %s started: %s\n' "${words[0]}" "${words[*]:1}"
			timed "${words[@]}" >"$report/${words[0]}.log" &
			running[$!]=${words[0]}
			continue
		fi
		status=0
		wait -n -p pid || status=$?
		if [ "$pid" = "$tick" ]; then
			printf '  ... still at %s, %d s\n' "${running[*]}" "$SECONDS"
			sleep 60 &
			tick=$!
			continue
		fi
		printf '\n=== %s said:\n' "${running[$pid]}"
		cat "$report/${running[$pid]}.log"
		record "${running[$pid]}" $status
		unset "running[$pid]"
	done
	kill $tick
	wait $tick 2>/dev/null || true
}

# Prints the summary and keeps it; returns whether all steps passed.
summary() {
	printf '\n=== summary: time, processor time (%s processors)\n' "$(nproc)"
	{
		cat "$report/.steps"
		printf '%-16s %5d s\n' total "$SECONDS"
	} | tee "$report/summary.txt"
	return $failed
}
