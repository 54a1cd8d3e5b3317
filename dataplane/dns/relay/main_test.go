package relay

import (
	"os"
	"testing"

	"github.com/varve-net/varve/internal/testns"
)

func TestMain(m *testing.M) { os.Exit(testns.Main(m, "relay")) }
