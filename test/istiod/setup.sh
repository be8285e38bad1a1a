#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh: put what a real istiod needs into the cache, once.
#
#   kube-apiserver, etcd    by ../plane/setup.sh, which shares them with the tests of a real node
#   pilot-discovery         istiod, built from the Go module proxy at the version below
#   istio.yaml, gateway/    what the API server must know of Istio's and of the Gateway API's objects
#
# Prints the folder of the first, then that of the others. It is named by the version, and each part is renamed into
# place when it is whole: running it again, or twice at once, does no harm and needs no network.
set -eu

ISTIO=v0.0.0-20260827124520-eed52ebb66ad
GATEWAY=v1.6.0

here=$(dirname "$(realpath "$0")")
dir=${XDG_CACHE_HOME:-$HOME/.cache}/kmesh/bin/istio-$ISTIO
case "${1:-}" in
	"") ;;
	--dir) "$here/../plane/setup.sh" --dir; echo "$dir"; exit 0 ;;
	*) echo "usage: $0 [--dir]    (--dir only says where)" >&2; exit 2 ;;
esac

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
trap 'rm -rf "$dir"/new.*' EXIT

# missing NAME: is this part not there yet? Then $new is an empty folder to make it in, and keep FILE puts it in place.
missing() {
	[ -e "$dir/$1" ] && return 1
	new=$dir/new.$1
	rm -rf "$new" && mkdir "$new"
	echo "setup: $1 (once)" >&2
}
keep() { mv "$1" "$dir/$(basename "$1")" && rm -rf "$new"; }

# of MODULE@VERSION: its folder, downloaded if need be.
of() { (cd "$new" && go mod download "$1" >&2) && echo "$(go env GOMODCACHE)/$1"; }

if missing pilot-discovery; then
	echo 'setup: it takes 8 minutes of one processor where Go'\''s cache is empty' >&2
	# With the tags of Istio's own build.
	GOBIN=$new CGO_ENABLED=0 GOWORK=off go install -trimpath -tags vtprotobuf,disable_pgv -ldflags '-s -w' \
		"istio.io/istio/pilot/cmd/pilot-discovery@$ISTIO" >&2
	keep "$new/pilot-discovery"
fi
if missing istio.yaml; then
	cp "$(of "istio.io/istio@$ISTIO")/manifests/charts/base/files/crd-all.gen.yaml" "$new/istio.yaml"
	keep "$new/istio.yaml"
fi
if missing gateway; then
	mkdir "$new/gateway"
	cp "$(of "sigs.k8s.io/gateway-api@$GATEWAY")"/config/crd/standard/*.yaml "$new/gateway/"
	keep "$new/gateway"
fi

"$here/../plane/setup.sh" kube-apiserver etcd
echo "$dir"
