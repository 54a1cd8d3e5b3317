// Package version says which varve this binary is.
package version

import (
	"runtime"
	"runtime/debug"
)

// version is set at link time:
// -ldflags "-X github.com/varve-net/varve/internal/version.version=v1.2.3".
var version string

// Info describes a build.
type Info struct {
	Version  string `json:"version" yaml:"version"`   // "v1.2.3", or "devel" where none was given
	Commit   string `json:"commit" yaml:"commit"`     // of the sources; empty if unknown
	Modified bool   `json:"modified" yaml:"modified"` // the sources differed from the commit
	Go       string `json:"go" yaml:"go"`
	Platform string `json:"platform" yaml:"platform"` // "linux/amd64"
}

// Get is this binary's.
func Get() Info {
	info := Info{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		bi = &debug.BuildInfo{}
	}
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Commit = s.Value
		case "vcs.modified":
			info.Modified = s.Value == "true"
		}
	}
	if info.Version == "" {
		info.Version = bi.Main.Version
	}
	if info.Version == "" || info.Version == "(devel)" {
		info.Version = "devel"
	}
	return info
}

// String is the version alone.
func String() string { return Get().Version }
