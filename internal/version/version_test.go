package version

import "testing"

func TestLinkedVersionWins(t *testing.T) {
	defer func(old string) { version = old }(version)
	version = "v1.2.3"
	if got := String(); got != "v1.2.3" {
		t.Errorf("String() = %q, want the version given at link time", got)
	}
}

func TestWithoutLinkedVersion(t *testing.T) {
	defer func(old string) { version = old }(version)
	version = ""
	if got := Get(); got.Version == "" || got.Version == "(devel)" || got.Go == "" || got.Platform == "" {
		t.Errorf("Get() = %+v, want every field that is always known", got)
	}
}
