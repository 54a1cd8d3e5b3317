package cli

import (
	"os"
	"strings"
	"testing"
)

// TestMain takes the settings of whoever runs the tests out of their way.
func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, envPrefix) || name == "NO_COLOR" {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}
