package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	tests := []struct {
		name  string
		in    string
		code  int
		want  []string
		never []string
	}{
		{
			name: "all pass",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`,
			code: 0, want: []string{"ok  \tp\t0.1s", "\n1 passed, 0 failed, 0 skipped\n"}, never: []string{"noise"},
		},
		{
			name: "a skip fails and is named with its reason",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: no TCX\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
`,
			code: 1, want: []string{"p.TestA (a_test.go:3: no TCX)", "1 passed, 0 failed, 1 skipped"},
		},
		{
			name: "a package without tests is no skip",
			in: `{"Action":"skip","Package":"q"}
{"Action":"pass","Package":"p","Test":"TestB"}
`,
			code: 0, want: []string{"1 passed, 0 failed, 0 skipped"},
		},
		{
			name: "a failure shows its output",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`,
			code: 1, want: []string{"got 1, want 2", "FAIL in:\n  p\n", "0 passed, 1 failed, 0 skipped"},
		},
		{
			name: "a panic shows the output of the test that never ended",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}
`,
			code: 1, want: []string{"panic: boom", "FAIL in:\n  p\n"},
		},
		{
			name: "a package that does not build",
			in: `{"ImportPath":"p","Action":"build-output","Output":"a.go:1: syntax error\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"pass","Package":"q","Test":"TestB"}
`,
			code: 1, want: []string{"a.go:1: syntax error", "FAIL in:\n  p\n"},
		},
		{name: "nothing ran", in: "", code: 1, want: []string{"0 passed, 0 failed, 0 skipped"}},
		{
			name: "words of the go command pass through",
			in:   "go: cannot find main module\n",
			code: 1, want: []string{"go: cannot find main module"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if code := run(strings.NewReader(tt.in), &out); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("output lacks %q:\n%s", w, &out)
				}
			}
			for _, w := range tt.never {
				if strings.Contains(out.String(), w) {
					t.Errorf("output has %q:\n%s", w, &out)
				}
			}
		})
	}
}
