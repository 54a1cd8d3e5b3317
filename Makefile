# varve. `make help` lists what can be done.
SHELL := /bin/bash
.DEFAULT_GOAL := help
GO ?= go
BIN := $(CURDIR)/.bin

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PROTOS := log/eventpb/event.proto $(wildcard api/varve/v1/*.proto)

.PHONY: proto
proto: ## Generate Go from the protobuf files
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto
	PATH=$(BIN):$$PATH protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --go-vtproto_out=. --go-vtproto_opt=paths=source_relative,features=marshal+unmarshal+size log/eventpb/event.proto
	PATH=$(BIN):$$PATH protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --connect-go_out=. --connect-go_opt=paths=source_relative api/varve/v1/*.proto
