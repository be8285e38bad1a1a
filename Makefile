# SPDX-License-Identifier: Apache-2.0

# Every target installs what it lacks (Debian's apt, Go's own module proxy), and says so when it does.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
# One way to compile for everything that is built, tested and checked here, so that what k8s.io and Envoy's types take is
# compiled once. Only the race detector needs cgo.
export CGO_ENABLED := 0
export GOFLAGS := $(GOFLAGS) -trimpath
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# One major version of clang: the compiled programs in bpf/ are committed, and must come out the same.
CLANG := 19
export BPF2GO_CC := clang-$(CLANG)
export BPF2GO_STRIP := llvm-strip-$(CLANG)

# Tested with the race detector: what is pure, and what shares memory between goroutines. The others
# spend their time in the kernel and in child processes, which the detector does not see.
RACE := ^kmesh/(helper/(mesh|xds|identity|translate|snapshot|lastgood|balance|probe|api)|cni/(optin|entry)|install)(/|$$)

# Packages whose tests make no node, no programs and no maps: several at once do not disturb each other.
TOGETHER := ^kmesh/(helper/(head|explain|routediff|resolve|kmeshctl|scopes|controller|pods|shelf)|manifests|test/house)(/|$$)

# The longest that one package's tests may take.
TIMEOUT := 10m

need := .ci/need

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the binaries, in bin/ (needs only Go)
	@$(need) $(GO) golang-go
	mkdir -p bin
	for main in cni/kmesh-cni helper/kmesh-helper helper/kmeshctl install/kmesh-install install/kmesh-cni-stub; do
		$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./$$main
	done

# The image's name, as the manifests have it.
IMAGE ?= kmesh.net/kmesh:devel

.PHONY: image
image: ## bin/image.tar: the image for linux/amd64 and arm64, for ctr images import (needs only Go)
	@$(need) $(GO) golang-go
	$(GO) run ./manifests/image -o bin/image.tar -name '$(IMAGE)' -version '$(VERSION)' -go '$(GO)'

.PHONY: manifests
manifests: ## bin/base.yaml and bin/chart.yaml: what kustomize and Helm install (VALUES=file of the chart's)
	@$(need) $(GO) golang-go
	mkdir -p bin
	cd test/manifests
	$(GO) run ./render -base > ../../bin/base.yaml
	$(GO) run ./render $(if $(VALUES),-values '$(abspath $(VALUES))') > ../../bin/chart.yaml

.PHONY: generate
generate: ## regenerate what is generated and committed: BPF objects, protobuf code
	@$(need) $(GO) golang-go
	$(need) clang-$(CLANG) clang-$(CLANG)
	$(need) llvm-strip-$(CLANG) llvm-$(CLANG)
	$(need) /usr/include/bpf/bpf_helpers.h libbpf-dev
	$(need) protoc protobuf-compiler
	$(GO) generate ./...

.PHONY: formatter
formatter:
	@$(need) $(GO) golang-go
	$(need) clang-format-$(CLANG) clang-format-$(CLANG)

.PHONY: lint
lint: formatter ## gofmt, vet, staticcheck, clang-format, the import graph, package comments
	@$(need) $(GO) golang-go
	status=0
	unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l $$(git ls-files -co --exclude-standard '*.go'))
	if [ -n "$$unformatted" ]; then
		printf 'not formatted, run gofmt -w:\n%s\n' "$$unformatted" >&2
		status=1
	fi
	$(GO) vet ./... || status=1
	(cd test/manifests && $(GO) vet ./...) || status=1
	$(GO) tool staticcheck ./... || status=1
	find bpf -name '*.[ch]' ! -name vmlinux.h -print0 | xargs -0r clang-format-$(CLANG) --dry-run -Werror || {
		echo 'not formatted, run clang-format-$(CLANG) -i on them' >&2
		status=1
	}
	$(GO) test -count=1 ./test/house || status=1
	[ $$status = 0 ]
	echo 'lint: clean'

.PHONY: test
test: build ## every test, as root: it loads programs, makes network namespaces and cgroups
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make test: needs root (programs, network namespaces, cgroups): sudo make test' >&2
		exit 1
	fi
	$(need) gcc gcc libc6-dev
	$(need) ip iproute2
	$(need) node nodejs
	if [ "$$(stat -f -c %t /sys/fs/bpf 2>/dev/null)" != cafe4a11 ]; then
		echo 'make test: /sys/fs/bpf is no bpf filesystem: mounting one (umount /sys/fs/bpf takes it away)'
		mkdir -p /sys/fs/bpf
		mount -t bpf bpf /sys/fs/bpf
	fi
	$(need) wrk wrk
	$(need) haproxy haproxy
	$(need) nginx nginx
	$(need) redis-server redis-server
	$(need) redis-cli redis-tools
	$(need) ab apache2-utils
	$(need) curl curl
	$(need) /usr/bin/python3 python3
	$(need) java openjdk-17-jre-headless
	$(need) ecj ecj
	$(need) nft nftables
	test/containerd/setup.sh
	packages=$$($(GO) list ./... | grep -Ev '^kmesh/test/(e2e|istiod)$$') # those are make e2e's and make istiod's
	status=0
	# From the end of the alphabet: install takes longest, and waits most of it.
	CGO_ENABLED=1 $(GO) test -race -timeout $(TIMEOUT) $$(grep -E '$(RACE)' <<<"$$packages" | sort -r) || status=1
	$(GO) test -count=1 -timeout $(TIMEOUT) $$(grep -Ev '$(RACE)' <<<"$$packages" | grep -E '$(TOGETHER)') || status=1
	# One package at a time: each makes nodes, and looks for what they left on a machine that is busy enough.
	# Never from the cache: these depend on the kernel and on bin/, which the go command does not see.
	$(GO) test -p 1 -count=1 -timeout $(TIMEOUT) $$(grep -Ev '$(RACE)|$(TOGETHER)' <<<"$$packages") || status=1
	# A module of its own: Helm and kustomize are not among ours.
	(cd test/manifests && $(GO) test -count=1 -timeout $(TIMEOUT) ./...) || status=1
	exit $$status

.PHONY: e2e
e2e: ## Kmesh by its chart on a real Kubernetes node inside this machine (as root; builds Kubernetes, once)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make e2e: needs root (programs, namespaces, cgroups): sudo make e2e' >&2
		exit 1
	fi
	$(need) $(GO) golang-go
	$(need) gcc gcc libc6-dev
	$(need) nsenter util-linux
	began=$$SECONDS
	test/e2e/setup.sh >/dev/null
	$(GO) run ./manifests/image -o bin/e2e-image.tar -name '$(IMAGE)' -version '$(VERSION)' -go '$(GO)' -platforms "linux/$$($(GO) env GOARCH)"
	echo "make e2e: all its parts are there after $$((SECONDS - began)) s"
	$(GO) test -count=1 -v -timeout 15m ./test/e2e

.PHONY: istiod
istiod: ## a Kmesh node against a real istiod and API server inside this machine (as root; builds them, once)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make istiod: needs root (programs, network namespaces, cgroups): sudo make istiod' >&2
		exit 1
	fi
	$(need) $(GO) golang-go
	began=$$SECONDS
	test/istiod/setup.sh >/dev/null
	echo "make istiod: all its parts are there after $$((SECONDS - began)) s"
	$(GO) test -count=1 -v -timeout 30m ./test/istiod

# How long each fuzzer runs, and those of translation and of the file source.
FUZZTIME ?= 30s
FUZZLONG ?= 30s

.PHONY: fuzzers
fuzzers: ## the fuzzers, as programs, in bin/fuzz
	@$(need) $(GO) golang-go
	GO='$(GO)' .ci/fuzz build bin/fuzz

.PHONY: fuzz
fuzz: fuzzers ## every fuzzer for FUZZTIME (30s); what one finds belongs into testdata, as a seed with a name
	@$(need) $(GO) golang-go
	GO='$(GO)' .ci/fuzz run bin/fuzz $(FUZZTIME) $(FUZZLONG)

.PHONY: demo
demo: build ## a node inside this machine, real traffic, in under a minute (as root)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make demo: needs root (programs, network namespaces, cgroups): sudo make demo' >&2
		exit 1
	fi
	$(GO) build -o bin/demo ./test/demo
	exec bin/demo

.PHONY: fault
fault: build ## the fault matrix, with figures, into test/fault/RESULTS.md (as root, 15 to 30 minutes)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make fault: needs root (programs, network namespaces, cgroups): sudo make fault' >&2
		exit 1
	fi
	$(need) ip iproute2
	$(need) unshare util-linux
	test/containerd/setup.sh
	$(GO) build -o bin/fault ./test/fault
	exec bin/fault -o test/fault/RESULTS.md

# How many views of the mesh pods have: one for all, then one for each of so many pods.
SCOPES ?= 1

.PHONY: scale
scale: ## 10,000 services and 100,000 endpoints from a real ADS server, with figures, into test/scale/RESULTS.md (as root)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make scale: needs root (programs, network namespaces, cgroups): sudo make scale' >&2
		exit 1
	fi
	$(need) $(GO) golang-go
	$(need) ip iproute2
	$(GO) build -o bin/scale ./test/scale
	exec bin/scale -scopes '$(SCOPES)' -o test/scale/RESULTS.md

# How long the measuring takes: quick (about 7 minutes) or full (under 30).
BENCH ?= quick
export BENCH

.PHONY: bench
bench: build ## what Kmesh costs, beside direct and HAProxy x2: BENCH=quick (default) or full (as root)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make bench: needs root (programs, network namespaces, cgroups): sudo make bench' >&2
		exit 1
	fi
	$(need) wrk wrk
	$(need) haproxy haproxy
	$(GO) build -o bin/bench ./test/bench
	exec bin/bench -bin bin -o bin/bench.json

# Another kernel, to load and run everything on: Debian's package of it.
KERNEL ?= 6.1

# And another processor: amd64 or arm64.
ARCH ?= amd64

.PHONY: vm
vm: ## load every program, and route requests, on Linux 6.1 in an emulated machine (KERNEL=6.12, ARCH=arm64)
	@$(need) $(GO) golang-go
	$(need) dpkg-deb dpkg
	$(GO) build -o bin/vm ./test/vm
	exec bin/vm -kernel '$(KERNEL)' -arch '$(ARCH)'

.PHONY: programs
programs: ## measure what every program costs the verifier, here and on Linux 6.1, into bpf/PROGRAMS.md (as root)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make programs: needs root (it loads them): sudo make programs' >&2
		exit 1
	fi
	$(need) $(GO) golang-go
	$(GO) build -o bin/vm ./test/vm
	exec bin/vm -kernel '$(KERNEL)' -traffic=false -table bpf/PROGRAMS.md

.PHONY: clean
clean: ## remove what the targets made in the tree
	rm -rf bin
