# SPDX-License-Identifier: Apache-2.0

# Every target installs what it lacks (Debian's apt, Go's own module proxy), and says so when it does.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# One major version of clang: the compiled programs in bpf/ are committed, and must come out the same.
CLANG := 19
export BPF2GO_CC := clang-$(CLANG)
export BPF2GO_STRIP := llvm-strip-$(CLANG)

# Tested with the race detector: what is pure, and what shares memory between goroutines. The others
# spend their time in the kernel and in child processes, which the detector does not see.
RACE := ^kmesh/(helper/(mesh|xds|translate|snapshot|balance|probe|api)|cni/optin|install/conflist)(/|$$)

# The longest that one package's tests may take.
TIMEOUT := 10m

need := .ci/need

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the binaries, in bin/ (needs only Go)
	@$(need) $(GO) golang-go
	mkdir -p bin
	for main in cni/kmesh-cni helper/kmesh-helper helper/kmeshctl; do
		CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./$$main
	done

.PHONY: generate
generate: ## regenerate what is generated and committed: BPF objects, protobuf code
	@$(need) $(GO) golang-go
	$(need) clang-$(CLANG) clang-$(CLANG)
	$(need) llvm-strip-$(CLANG) llvm-$(CLANG)
	$(need) /usr/include/bpf/bpf_helpers.h libbpf-dev
	$(need) protoc protobuf-compiler
	$(GO) generate ./...

.PHONY: lint
lint: ## gofmt, vet, staticcheck, clang-format, the import graph, package comments
	@$(need) $(GO) golang-go
	$(need) clang-format-$(CLANG) clang-format-$(CLANG)
	status=0
	unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l $$(git ls-files -co --exclude-standard '*.go'))
	if [ -n "$$unformatted" ]; then
		printf 'not formatted, run gofmt -w:\n%s\n' "$$unformatted" >&2
		status=1
	fi
	$(GO) vet ./... || status=1
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
	test/containerd/setup.sh
	packages=$$($(GO) list ./...)
	status=0
	CGO_ENABLED=1 $(GO) test -race -timeout $(TIMEOUT) $$(grep -E '$(RACE)' <<<"$$packages") || status=1
	# One package at a time: each makes nodes, and looks for what they left on a machine that is busy enough.
	# Never from the cache: these depend on the kernel and on bin/, which the go command does not see.
	$(GO) test -p 1 -count=1 -timeout $(TIMEOUT) $$(grep -Ev '$(RACE)' <<<"$$packages") || status=1
	exit $$status

# How long each fuzzer runs.
FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## every fuzzer for FUZZTIME (30s); what one finds belongs into testdata, as a seed with a name
	@$(need) $(GO) golang-go
	.ci/fuzz $(GO) $(FUZZTIME)

.PHONY: demo
demo: build ## a node inside this machine, real traffic, in under a minute (as root)
	@if [ "$$(id -u)" != 0 ]; then
		echo 'make demo: needs root (programs, network namespaces, cgroups): sudo make demo' >&2
		exit 1
	fi
	$(GO) build -trimpath -o bin/demo ./test/demo
	exec bin/demo

# How long the measuring takes: quick (about 6 minutes) or full (under 30).
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
	$(GO) build -trimpath -o bin/bench ./test/bench
	exec bin/bench -bin bin -o bin/bench.json

.PHONY: clean
clean: ## remove what the targets made in the tree
	rm -rf bin
