// Command varve-lint checks what no common linter knows of varve's packages.
// It takes package patterns, as go vet does: `go run ./internal/lint/cmd/varve-lint ./...`.
package main

import (
	"golang.org/x/tools/go/analysis/multichecker"

	"github.com/varve-net/varve/internal/lint/purity"
)

func main() { multichecker.Main(purity.Analyzer) }
