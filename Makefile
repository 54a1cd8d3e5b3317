# varve. `make help` lists what can be done.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BIN := $(CURDIR)/.bin
MODULE := github.com/varve-net/varve
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOLANGCI_LINT_VERSION := v2.15.0
CLANG := clang-19
CLANG_FORMAT := clang-format-19

# For each package: a test that hangs ends, one on a slow machine does not.
TEST_TIMEOUT ?= 30m

PROTOS := log/eventpb/event.proto flows/flowpb/flow.proto $(wildcard api/varve/v1/*.proto)
# What `make generate` writes.
GENERATED := '*.pb.go' '*.connect.go' '*_bpfel.go' '*_bpfel.o' '*_bpfeb.go' '*_bpfeb.o'

export CGO_ENABLED := 0

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: deps-go ## Build the static binary ./varve
	$(GO) build -trimpath -ldflags '-s -w -X $(MODULE)/internal/version.version=$(VERSION)' -o varve ./cmd/varve

.PHONY: demo
demo: deps-demo build ## See varve do its main job on real packets (as root)
	./varve demo

.PHONY: test
test: deps-test ## Vet and run every test, those that need the kernel too (as root)
	$(GO) vet ./...
	@# What only an emulated machine runs has to compile too.
	$(GO) vet -tags guest ./test/dns ./test/faults
	@# What tests build is built before, so that it does not count in their time.
	$(GO) build -o /dev/null ./cmd/varve
	cd test/docs/grpcurl && $(GO) build -o /dev/null github.com/fullstorydev/grpcurl/cmd/grpcurl
	@# The report decides: a skip fails too, and a failed build shows in it.
	@{ CGO_ENABLED=1 $(GO) test -json -race -count=1 -timeout $(TEST_TIMEOUT) ./... || true; } | $(GO) run ./hack/testreport

.PHONY: test-vm
test-vm: deps-vm ## Run the kernel tests on Debian's 6.1 and 6.12 in emulated machines; VM=-quick for some, VM="-run=regexp -kernels=bookworm" narrow them
	@# Both decide: the report of the tests, ./test/vm of the machines.
	@$(GO) run ./test/vm $(VM) | $(GO) run ./hack/testreport

.PHONY: test-crash
test-crash: deps-vm ## Kill an emulated machine 20 times while it appends to the log on its disk: nothing acknowledged may be lost
	$(GO) run ./test/vm -crash $(or $(ROUNDS),20)

.PHONY: bench
bench: deps-bench build ## Measure every hot path beside its peers (as root); BENCH=quick for 3 rounds of 11, ONLY=append,datapath for some
	@mkdir -p $(BIN)
	cd test/bench && $(GO) build -trimpath -o $(BIN)/bench .
	$(BIN)/bench run $(if $(filter quick,$(BENCH)),-quick) $(if $(ONLY),-only $(ONLY)) -varve $(CURDIR)/varve \
	  -out $(or $(BENCH_OUT),test/bench/results.json)

.PHONY: bench-report
bench-report: deps-go ## Put the results of make bench into docs/benchmarks.md
	@mkdir -p $(BIN)
	cd test/bench && $(GO) build -trimpath -o $(BIN)/bench .
	$(BIN)/bench report -in test/bench/results.json -docs docs

.PHONY: bench-go
bench-go: deps-go ## Run the Go benchmarks; BENCH=regexp PKG=./fsm/... narrow them
	$(GO) test -run '^$$' -bench '$(or $(BENCH),.)' -benchmem $(or $(PKG),./...) | grep -Ev 'no test files|^ok|^PASS'

.PHONY: generate
generate: proto bpf ## Regenerate protobuf code and BPF objects

.PHONY: proto
proto: deps-generate ## Generate Go from the protobuf files
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto
	PATH=$(BIN):$$PATH protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --go-vtproto_out=. --go-vtproto_opt=paths=source_relative,features=marshal+unmarshal+unmarshal_unsafe+size log/eventpb/event.proto
	PATH=$(BIN):$$PATH protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --connect-go_out=. --connect-go_opt=paths=source_relative api/varve/v1/*.proto
	PATH=$(BIN):$$PATH protoc -I . --go_out=. --go_opt=paths=source_relative flows/flowpb/flow.proto
	@# Codecs without reflection for the messages of the append path.
	PATH=$(BIN):$$PATH protoc -I . --go-vtproto_out=. --go-vtproto_opt=paths=source_relative,features=marshal+unmarshal+size \
	  api/varve/v1/log.proto api/varve/v1/moment.proto api/varve/v1/policy.proto

.PHONY: bpf
bpf: deps-generate ## Compile the BPF programs
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=llvm-strip-19 $(GO) generate ./bpf/...

.PHONY: check-generated
check-generated: generate ## Prove that the committed generated files are what the sources give
	@changed=$$(git status --porcelain -- $(GENERATED)); \
	if [[ -n $$changed ]]; then \
	  git --no-pager diff --stat -- $(GENERATED); \
	  printf 'generated files differ from what is committed; run "make generate" and commit:\n%s\n' "$$changed" >&2; exit 1; \
	fi; echo "generated files are up to date"

.PHONY: lint
lint: deps-go $(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION) ## Run the linters of .golangci.yml, and our own of internal/lint
	$(GO) run ./internal/lint/cmd/varve-lint ./...
	$(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION) run ./...

$(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION):
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv $(BIN)/golangci-lint $@

.PHONY: fmt
fmt: deps-go deps-format ## Format Go and C
	gofmt -w $$(git ls-files -co --exclude-standard '*.go' | grep -Ev '\.pb\.go$$|\.connect\.go$$|_bpfe[lb]\.go$$')
	$(CLANG_FORMAT) -i $$(git ls-files -co --exclude-standard 'bpf/*.c' 'bpf/include/*.h')

.PHONY: clean
clean: ## Remove what was built
	rm -rf varve $(BIN)

.PHONY: deps
deps: deps-test deps-vm deps-generate deps-format ## Install what any target needs and this machine lacks (Debian, as root)

.PHONY: deps-go deps-demo deps-test deps-vm deps-generate deps-format
deps-go:
	@GO=$(GO) hack/deps.sh go
deps-demo:
	@GO=$(GO) hack/deps.sh go root
deps-test:
	@GO=$(GO) hack/deps.sh go root race net disk dns
deps-vm:
	@GO=$(GO) hack/deps.sh go net vm
deps-bench:
	@GO=$(GO) hack/deps.sh go root net peers
deps-generate:
	@GO=$(GO) hack/deps.sh go generate
deps-format:
	@hack/deps.sh format
