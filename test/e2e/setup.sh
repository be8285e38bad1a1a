#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh: put what a real node needs into the cache, once.
#
#   kubelet, kube-apiserver, etcd    built from the Go module proxy: Kubernetes at the version below, and the etcd that it asks for
#   containerd, its shim, ctr, runc  by ../containerd/setup.sh, which shares them with the tests there
#
# Prints the folder of the first, then that of the second. The first is named by the version, and each part is renamed
# into place when it is whole: running it again, or twice at once, does no harm and needs no network. What was compiled
# before an interruption is in Go's own cache.
# Needs root only where a C compiler or libseccomp's headers have to be installed.
set -eu

KUBERNETES=v1.37.2
# The modules that Kubernetes' own go.mod takes from its source tree have versions v0.X.Y on the proxy.
STAGING=v0.${KUBERNETES#v1.}
PROGRAMS='kubelet kube-apiserver etcd'

here=$(dirname "$(realpath "$0")")
base=${XDG_CACHE_HOME:-$HOME/.cache}/kmesh/bin
dir=$base/kubernetes-$KUBERNETES
case "${1:-}" in
	"") ;;
	--dir) echo "$dir"; exec "$here/../containerd/setup.sh" --dir ;;
	*) echo "usage: $0 [--dir]    (--dir only says where)" >&2; exit 2 ;;
esac

runtimes=$("$here/../containerd/setup.sh")

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
trap 'rm -rf "$dir/new"' EXIT

whole=yes
for p in $PROGRAMS; do [ -x "$dir/$p" ] || whole=no; done
if [ $whole = no ]; then
	rm -rf "$dir/new" && mkdir "$dir/new" && cd "$dir/new"
	echo "setup: $PROGRAMS (once: 15 minutes of one processor where Go's cache is empty)" >&2
	# A module of its own that requires Kubernetes: its go.mod says where to find the modules that are folders in the
	# source tree and not in the released module.
	{
		printf 'module node\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$KUBERNETES"
		for m in api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap \
			code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming \
			csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator \
			kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils \
			pod-security-admission sample-apiserver sample-cli-plugin sample-controller streaming; do
			printf '\tk8s.io/%s => k8s.io/%s %s\n' $m $m "$STAGING"
		done
		printf ')\n'
	} >go.mod
	version=k8s.io/component-base/version
	minor=${KUBERNETES#v1.}
	stamp="-X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=${minor%%.*}"
	mkdir out
	CGO_ENABLED=0 GOWORK=off go build -mod=mod -trimpath -ldflags "-s -w $stamp" -o out/ \
		k8s.io/kubernetes/cmd/kubelet k8s.io/kubernetes/cmd/kube-apiserver >&2
	CGO_ENABLED=0 GOWORK=off go build -mod=mod -trimpath -ldflags '-s -w' -o out/etcd go.etcd.io/etcd/server/v3 >&2
	for p in $PROGRAMS; do mv "out/$p" "$dir/$p"; done
fi

echo "$dir"
echo "$runtimes"
