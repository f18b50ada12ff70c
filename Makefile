# SPDX-License-Identifier: Apache-2.0
# Every target works from a fresh clone on Debian or Ubuntu with Go, or says what it lacks. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Kernels for test-vm: 5.10 polices, the others pace. Any of 5.10 6.1 6.12 7.
KERNELS ?= 5.10 6.1 7
# demo and e2e: run inside this Debian kernel in QEMU; empty for the machine's own.
KERNEL ?=
# FULL=1: also what takes minutes. For test-vm a kernel, or all.
FULL ?=
FUZZTIME ?= 10s
# e2e: only the steps that match, such as TestKubepace/reference; and how often those run that can be repeated, in one cluster.
RUN ?=
COUNT ?=
# Benchmarks: DOCS=no leaves the tables in docs/ as they are.
DOCS ?=

export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export CGO_ENABLED := 0
install := tests/setup/install.sh
gotest := tests/setup/gotest.sh

# Tests of these packages want root and network namespaces, others a control plane or QEMU; the rest is unit tests.
# This is the only list of them: test-vm runs the same ones in QEMU, but for netlab's own.
kernel_packages := ./bpf ./enforcer/datapath ./enforcer/device ./enforcer/qdisc ./enforcer/rivals ./cmd/kubepace-enforcer
netlab_packages := ./tests/netlab/...
# What measures traffic through the datapath has the machine for itself.
traffic_packages := ./tests/datapath
unit_packages = $$(go list ./... | grep -vxFf <(go list $(kernel_packages) $(netlab_packages) $(traffic_packages)) | grep -vE '/tests/(admission|vm|cnilab)(/|$$)|/tests/e2e$$')

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: build
build: go-there ## build bin/kubepace-webhook and bin/kubepace-enforcer
	go build -o bin/ ./cmd/...

.PHONY: test
test: QUICK := all
test: test-unit test-admission test-datapath test-node test-vm ## everything below that starts with test-; needs root; under 10 minutes once all is built

.PHONY: test-unit
test-unit: go-there ## packages by themselves, in seconds; no root needed
	$(gotest) $(unit_packages)

.PHONY: test-admission
test-admission: build ## the webhook, and the agent's side of the API, against a real kube-apiserver and etcd (built on first use: about 10 minutes); one test needs root
	assets=$$(tests/kube/build.sh etcd kube-apiserver kubectl kube-controller-manager) && KUBEBUILDER_ASSETS=$$assets KUBEPACE_WEBHOOK=$(CURDIR)/bin/kubepace-webhook $(gotest) -count=1 -p 4 ./tests/admission/...

.PHONY: test-datapath
test-datapath: build root-here ## the enforcer on this machine's kernel, in network namespaces (FULL=1: at length); needs root
	$(install) kernel
	tests/datapath/next-version.sh bin/kubepace-enforcer-next
	status=0; for packages in "$(kernel_packages) $(netlab_packages)" "$(traffic_packages)"; do \
		KUBEPACE_ENFORCER=$(CURDIR)/bin/kubepace-enforcer KUBEPACE_ENFORCER_NEXT=$(CURDIR)/bin/kubepace-enforcer-next KUBEPACE_MAY_SKIP='kernel needs CONFIG_NET_SCH_' $(gotest) $(if $(FULL),,-short) -count=1 -parallel 4 $$packages || status=1; \
	done; exit $$status

.PHONY: test-node
test-node: build root-here ## the enforcer beside real CNI plugins, and while the API server is away; needs root
	$(install) kernel
	plugins=$$(tests/bench/cni/build.sh --folder) && KUBEPACE_CNI_PLUGINS=$$plugins KUBEPACE_ENFORCER=$(CURDIR)/bin/kubepace-enforcer $(gotest) $(if $(FULL),,-short) -count=1 ./tests/cnilab

.PHONY: test-vm
test-vm: build root-here ## the same in QEMU on Debian's kernels: KERNELS="5.10 6.1 6.12 7"; FULL=6.12: at length there, QUICK="5.10 7": less there; needs root
	$(install) vm
	FULL=$(FULL) QUICK="$(QUICK)" PACKAGES="$(kernel_packages) $(traffic_packages)" tests/vm/suite.sh $(KERNELS)

.PHONY: bench-admission
bench-admission: go-there ## what admission costs through a real kube-apiserver, beside none and CEL, into docs/benchmarks-admission.md (about 10 minutes; QUICK=1: 4)
	assets=$$(tests/kube/build.sh etcd kube-apiserver kubectl) && KUBEBUILDER_ASSETS=$$assets go run ./tests/bench/admission $(if $(QUICK),--quick) $(if $(filter no,$(DOCS)),--docs=)

.PHONY: bench-datapath
bench-datapath: root-here ## kubepace beside its peers in QEMU, tables into docs/benchmarks.md (about 45 minutes; QUICK=1: 4); needs root
	DOCS=$(DOCS) tests/bench/run.sh $(if $(QUICK),--quick)

.PHONY: bench-node
bench-node: build root-here ## what the node agent costs: 250 pods, churn, pods at once, a large cluster; tables into docs/benchmarks-node.md (about 35 minutes; QUICK=1: 8); needs root
	assets=$$(tests/kube/build.sh etcd kube-apiserver) && plugins=$$(tests/bench/cni/build.sh --folder) && KUBEBUILDER_ASSETS=$$assets KUBEPACE_CNI_PLUGINS=$$plugins go run ./tests/bench/node $(if $(QUICK),--quick) $(if $(filter no,$(DOCS)),--docs=)

.PHONY: fuzz
fuzz: go-there ## every fuzz target for FUZZTIME (10s) each
	tests/setup/fuzz.sh $(FUZZTIME)

.PHONY: lint
lint: go-there ## golangci-lint (built on first use), import rules, shellcheck, clang-format, what the tree must not hold
	$(install) lint
	tests/setup/lint.sh

.PHONY: generate
generate: go-there ## compile bpf/ anew with clang-14 and write its Go
	$(install) bpf
	go generate ./bpf

.PHONY: check-generated
check-generated: go-there ## fail where `make generate` would change a file
	$(install) bpf
	tests/setup/check-generated.sh

.PHONY: demo
demo: build root-here ## watch admission decide three limits and the kernel keep them; KERNEL=6.1 in QEMU; needs root
	$(install) demo
	go build -o bin/kubepace-demo ./tests/demo
	tests/demo/run.sh $(KERNEL)

.PHONY: e2e
e2e: build root-here ## kubepace in a real cluster: two nodes with kubelet, containerd and Flannel, the manifests, pods, traffic (RUN=regexp: some of it, COUNT=10: again and again; KERNEL=6.1: the reference in QEMU, paced; about 8 minutes); needs root
	$(install) e2e
	KUBEPACE_E2E_COUNT=$(COUNT) tests/e2e/run.sh $(if $(KERNEL),--kernel $(KERNEL)) $(if $(RUN),-test.run='$(RUN)')

.PHONY: ci-full
ci-full: root-here ## everything at length: native and QEMU, all kernels, e2e, the crowd ten times, demos, fuzzing, benchmarks' claims (about 2 hours); summary in build/ci-full; needs root
	tests/setup/ci-full.sh

.PHONY: clean
clean: ## remove bin/ and build/; caches outside the checkout stay
	rm -rf bin build

.PHONY: go-there
go-there:
	@$(install) go

.PHONY: root-here
root-here:
	@[ "$$(id -u)" = 0 ] || { echo "this target needs root (network namespaces, eBPF): sudo -E make ..." >&2; exit 1; }
