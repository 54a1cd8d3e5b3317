package docs

import (
	"path/filepath"
	"testing"
)

func TestTheExamplesOfAppend(t *testing.T) {
	s := newStage(t)
	s.build("grpcurl", filepath.Join(filepath.Dir(s.binary), "grpcurl"), "github.com/fullstorydev/grpcurl/cmd/grpcurl")
	hold(t, "append.md", s.play(read(t, "append.md"), map[string]func(*stage){"agent": (*stage).start}))
}
