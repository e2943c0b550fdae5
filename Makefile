# SPDX-License-Identifier: Apache-2.0

GO      ?= go
MODULE  := github.com/overlaybd-go/overlaybd
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED ?= 0

.PHONY: all build setup demo test test-vm fuzz bench bench-start bench-vm lint fmt proto clean help

all: build

build: ## build every command, static, into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...
	ln -sf overlaybd bin/overlaybd-attacher

setup: ## install what tests and demo need, from Debian's packages
	./tests/setup.sh

demo: setup build ## run Python from an image that is not here yet; needs root
	@$(GO) build -o bin/demo ./tests/demo && exec bin/demo

test: setup ## run every test with the race detector, some in guests; needs root
	CGO_ENABLED=1 REQUIRE=root,fuse,loop,erofs,golden,mariadb,s3,qemu,commands,time $(GO) test -race -timeout 40m ./tests/vm ./... # guests first: they take longest
	$(GO) test -run Alloc ./backend/fuse ./backend/ublk ./cache ./daemon/download ./image/lsmt ./image/zfile # which the race detector changes

test-vm: ## run the tests for kernels that this machine lacks, in QEMU; KILLS=200
	REQUIRE=qemu $(GO) test -count=1 -v -timeout 40m ./tests/vm

fuzz: ## run every fuzz target for FUZZTIME (30s)
	./tests/fuzz.sh

bench: ## run the benchmarks; ratios are within one run
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m $$($(GO) list ./... | grep -v tests/bench)
	@$(MAKE) bench-start

bench-start: ## start and read large images over networks; BENCH=ColdStart/wan/numpy TURNS=3
	$(GO) test -run '^$$' -bench '$(or $(BENCH),.)' -benchtime $(or $(TURNS),3)x -timeout 3h ./tests/bench

bench-vm: ## compare the devices of every exporter, in QEMU
	REQUIRE=qemu VMFLAGS='-test.run=^$$ -test.bench=Kinds -test.benchtime=3x' $(GO) test -count=1 -v -timeout 30m -run TestGuests/.*6.12 ./tests/vm

proto: ## regenerate the block API's gRPC code; needs protoc 3.21
	GOBIN=$(CURDIR)/bin $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go
	GOBIN=$(CURDIR)/bin $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	PATH=$(CURDIR)/bin:$$PATH protoc --go_out=. --go_opt=module=$(MODULE) --go-grpc_out=. --go-grpc_opt=module=$(MODULE) daemon/blockapi/blockapi.proto

lint: ## run the linters
	golangci-lint run ./...

fmt: ## format the code
	golangci-lint fmt ./...

clean: ## remove what build made
	rm -rf bin

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12
