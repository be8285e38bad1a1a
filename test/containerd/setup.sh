#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh: put the container runtimes of these tests into the cache, once.
#
#   containerd, its shim, ctr and runc   built from the Go module proxy, at the versions below
#   Debian's own containerd and runc     downloaded and unpacked, never installed, never started as a service
#
# Prints the folder. It is named by the versions, so that a change of one builds anew, and each part is renamed into
# place when it is whole: running it again, or twice at once, does no harm and needs no network.
# Needs root only where a C compiler or libseccomp's headers have to be installed.
set -eu

CONTAINERD=v2.4.2
RUNC=v1.5.2

base=${XDG_CACHE_HOME:-$HOME/.cache}/kmesh/bin
dir=$base/containerd-$CONTAINERD-runc-$RUNC
case "${1:-}" in
	"") ;;
	--dir) echo "$dir"; exit 0 ;;
	*) echo "usage: $0 [--dir]    (--dir only says where)" >&2; exit 2 ;;
esac
mkdir -p "$dir"

exec 9>"$dir/lock"
flock 9
trap 'rm -rf "$dir"/new.*' EXIT

# missing NAME: is this part not there yet? Then $new is an empty folder to make it in, and keep NAME puts it in place.
missing() {
	[ -d "$dir/$1" ] && return 1
	new=$dir/new.$1
	rm -rf "$new" && mkdir "$new"
	echo "setup: $1 (once)" >&2
}
keep() { mv "$new" "$dir/$1"; }

apt_lists() {
	[ -n "${updated:-}" ] || apt-get -q update >&2
	updated=yes
}

# A module of its own, not ours: go install builds each program with the versions its authors released it with.
install_go() { (cd / && GOBIN=$new GOWORK=off go install -trimpath "$@" >&2); }

if missing v2; then
	for p in containerd containerd-shim-runc-v2 ctr; do set -- "$@" "github.com/containerd/containerd/v2/cmd/$p@$CONTAINERD"; done
	CGO_ENABLED=0 install_go -ldflags '-s -w' "$@"
	keep v2
fi

if missing runc; then
	# The kubelet asks for a seccomp profile on every sandbox, so runc is built with libseccomp.
	if ! pkg-config --exists libseccomp 2>/dev/null || ! command -v gcc >/dev/null; then
		apt_lists
		DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install gcc libc6-dev pkg-config libseccomp-dev >&2
	fi
	CGO_ENABLED=1 install_go -tags netgo,osusergo,seccomp -ldflags '-s -w -extldflags -static' "github.com/opencontainers/runc@$RUNC"
	keep runc
fi

if missing debian; then
	(
		cd "$new"
		if ! apt-get -q download containerd runc >&2; then
			apt_lists
			apt-get -q download containerd runc >&2
		fi
		for d in *.deb; do dpkg-deb -x "$d" .; done
		rm -- *.deb
	)
	keep debian
fi

echo "$dir"
