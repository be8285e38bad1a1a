#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh: put what a real node needs into the cache, once.
#
#   kubelet, kube-apiserver, etcd    by ../plane/setup.sh
#   containerd, its shim, ctr, runc  by ../containerd/setup.sh, which shares them with the tests there
#
# Prints the folder of the first, then that of the second.
set -eu

here=$(dirname "$(realpath "$0")")
case "${1:-}" in
	"") ;;
	--dir) "$here/../plane/setup.sh" --dir; exec "$here/../containerd/setup.sh" --dir ;;
	*) echo "usage: $0 [--dir]    (--dir only says where)" >&2; exit 2 ;;
esac

runtimes=$("$here/../containerd/setup.sh")
"$here/../plane/setup.sh" kubelet kube-apiserver etcd
echo "$runtimes"
