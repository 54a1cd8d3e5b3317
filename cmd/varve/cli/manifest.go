package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/varve-net/varve/policy"
)

// stdinName is how a file argument names standard input.
const stdinName = "-"

// manifest is what a user wrote, and where.
type manifest struct {
	source string
	text   []byte
}

var manifestSuffixes = []string{".yaml", ".yml", ".json"}

// readManifests reads files, standard input ("-"), and the manifests that lie
// directly in directories, in order.
func (a *app) readManifests(paths []string) ([]manifest, error) {
	if len(paths) == 0 {
		return nil, usagef("no file is given; name files or directories, or - for standard input")
	}
	var out []manifest
	for _, path := range paths {
		if path == stdinName {
			text, err := io.ReadAll(a.stdin)
			if err != nil {
				return nil, fmt.Errorf("standard input: %w", err)
			}
			out = append(out, manifest{"stdin", text})
			continue
		}
		files, err := manifestFiles(path)
		if err != nil {
			return nil, &exitError{code: exitUsage, err: err}
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, &exitError{code: exitUsage, err: err}
			}
			out = append(out, manifest{file, text})
		}
	}
	return out, nil
}

func manifestFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains(manifestSuffixes, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: holds no %s", path, strings.Join(manifestSuffixes, ", "))
	}
	return files, nil
}

// object is as much of a manifest's document as names it.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Items    []object
}

// refs are the policies that a manifest names. It reads no more than their names,
// so that what this version would not accept can still be deleted.
func (m manifest) refs() ([]policy.Ref, error) {
	var out []policy.Ref
	dec := yaml.NewDecoder(bytes.NewReader(m.text))
	for doc := 0; ; doc++ {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, usagef("%s: document %d: %w", m.source, doc+1, err)
		}
		objects := []object{o}
		if strings.HasSuffix(o.Kind, "List") {
			objects = o.Items
		}
		for _, o := range objects {
			if o.Kind == "" && o.Metadata.Name == "" {
				continue // an empty document
			}
			ref, err := o.ref()
			if err != nil {
				return nil, usagef("%s: document %d: %w", m.source, doc+1, err)
			}
			out = append(out, ref)
		}
	}
}

func (o object) ref() (policy.Ref, error) {
	kind, err := policy.ParseKind(o.Kind)
	if err != nil {
		return policy.Ref{}, err
	}
	r := policy.Ref{Kind: kind, Name: o.Metadata.Name}
	if policy.KindNamespaced(kind) {
		r.Namespace = o.Metadata.Namespace
		if r.Namespace == "" {
			r.Namespace = defaultNamespace
		}
	}
	return r, r.Check()
}
