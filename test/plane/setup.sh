#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh PROGRAM...: put programs of Kubernetes into the cache, once: any of
#
#   kubelet, kube-apiserver, etcd    built from the Go module proxy: Kubernetes at the version below, and the etcd that it asks for
#
# Prints the folder. It is named by the version, and each program is renamed into place when it is whole: running it
# again, or twice at once, does no harm and needs no network. What was compiled before an interruption is in Go's own
# cache.
set -eu

KUBERNETES=v1.37.2
# The modules that Kubernetes' own go.mod takes from its source tree have versions v0.X.Y on the proxy.
STAGING=v0.${KUBERNETES#v1.}

dir=${XDG_CACHE_HOME:-$HOME/.cache}/kmesh/bin/kubernetes-$KUBERNETES
usage="usage: $0 [--dir] PROGRAM...    (--dir only says where)"
if [ "${1:-}" = --dir ]; then
	echo "$dir"
	exit
fi
[ $# -gt 0 ] || { echo "$usage" >&2; exit 2; }
packages='' missing=''
for p; do
	case $p in
		kubelet | kube-apiserver | etcd) ;;
		*) echo "$usage" >&2; exit 2 ;;
	esac
done

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
trap 'rm -rf "$dir/new"' EXIT

for p; do
	[ -x "$dir/$p" ] && continue
	missing="$missing $p"
	[ "$p" = etcd ] || packages="$packages k8s.io/kubernetes/cmd/$p"
done
if [ -n "$missing" ]; then
	rm -rf "$dir/new" && mkdir "$dir/new" && cd "$dir/new"
	echo "setup:$missing (once: 15 minutes of one processor where Go's cache is empty)" >&2
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
	export CGO_ENABLED=0 GOWORK=off
	[ -z "$packages" ] || go build -mod=mod -trimpath -ldflags "-s -w $stamp" -o out/ $packages >&2
	case " $missing " in
		*' etcd '*) go build -mod=mod -trimpath -ldflags '-s -w' -o out/etcd go.etcd.io/etcd/server/v3 >&2 ;;
	esac
	for p in $missing; do mv "out/$p" "$dir/$p"; done
fi

echo "$dir"
