# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts that want packages of another Debian suite, to unpack and never to install. The caller has say and die, and
# sets $apt_state to an empty folder.
#
# The package source is whatever this machine's own apt uses for Debian, with the suite replaced; apt gets a state
# folder of its own, so the system's lists stay as they are. KUBEPACE_DEBIAN_MIRROR (URIs, separated by spaces) adds
# sources to try: for machines that are not Debian, and for suites that have moved to an archive.
keyring=${KUBEPACE_DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

# Prints the Debian archives that apt knows here, one URI a line: "main URI" and "security URI".
archives() {
	local uri
	for uri in ${KUBEPACE_DEBIAN_MIRROR:-}; do
		echo "main ${uri%/}"
		echo "security ${uri%/}-security"
	done
	# shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
		sort -u | while read -r uri suite component; do
		uri=${uri%/}
		[ "$component" = main ] || continue
		case $suite in
		bullseye-security | bookworm-security | trixie-security) echo "security $uri" ;;
		bullseye | bookworm | trixie | forky | sid | stable)
			echo "main $uri"
			echo "security $uri-security"
			;;
		esac
	done | awk '!seen[$0]++'
}

# apt with its own state in $apt_state.
# shellcheck disable=SC2154 # the caller sets it
apt_own() {
	local tool=$1
	shift
	"$tool" -q -o Dir::State="$apt_state/state" -o Dir::State::lists="$apt_state/lists" -o Dir::Cache="$apt_state/cache" \
		-o Dir::Etc::sourcelist="$apt_state/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::status="$apt_state/status" \
		-o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Check-Valid-Until=false \
		-o Acquire::Retries=3 "$@"
}

# Fills $apt_state with the lists of the suites that can be had; says which cannot.
update_lists() {
	local suite kind uri got=0 found
	mkdir -p "$apt_state"/{state,lists/partial,cache/archives/partial}
	: >"$apt_state/status"
	for suite in "$@"; do
		found=no
		kind=main
		[ "$suite" = "${suite%-security}" ] || kind=security
		for uri in $(archives | awk -v k=$kind '$1 == k {print $2}'); do
			echo "deb [signed-by=$keyring] $uri $suite main" >"$apt_state/sources.list"
			if apt_own apt-get --no-list-cleanup update >"$apt_state/update.log" 2>&1 &&
				! grep -q '^\(E\|Err\|W: Failed\)' "$apt_state/update.log"; then
				cat "$apt_state/sources.list" >>"$apt_state/all.list"
				found=yes
				got=$((got + 1))
				break
			fi
			sed 's/^/    /' "$apt_state/update.log" | tail -n 3 >&2
		done
		[ $found = yes ] || say "  no source for suite $suite"
	done
	[ $got -gt 0 ] || die "none of the suites $* can be reached through this machine's apt sources;" \
		"set KUBEPACE_DEBIAN_MIRROR to the URI of a Debian archive that has them (and install debian-archive-keyring)"
	mv "$apt_state/all.list" "$apt_state/sources.list"
}
