package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	made, err := LoadOrCreate(dir, "c1", "n1")
	if err != nil {
		t.Fatal(err)
	}
	if made.Cluster != "c1" || made.Node != "n1" || len(made.ServerID) != 32 {
		t.Errorf("created %+v", made)
	}
	loaded, err := LoadOrCreate(dir, "c1", "n1")
	if err != nil || loaded != made {
		t.Errorf("loaded %+v, %v; created %+v", loaded, err, made)
	}
	other, err := LoadOrCreate(t.TempDir(), "c1", "n1")
	if err != nil || other.ServerID == made.ServerID {
		t.Errorf("another directory: %+v, %v: the id must be random", other, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v; want identity.json alone", entries, err)
	}
}

func TestLoadOrCreateRefusesOthers(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOrCreate(dir, "c1", "n1"); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][2]string{{"c2", "n1"}, {"c1", "n2"}} {
		_, err := LoadOrCreate(dir, names[0], names[1])
		if !errors.Is(err, ErrOtherNode) {
			t.Fatalf("%v: error %v, want ErrOtherNode", names, err)
		}
		for _, name := range []string{`"c1"`, `"n1"`, `"` + names[0] + `"`, `"` + names[1] + `"`} {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%v: error %q does not name %s", names, err, name)
			}
		}
	}
}

func TestLoadOrCreateBadInput(t *testing.T) {
	for name, tc := range map[string]struct{ file, cluster, node, want string }{
		"no cluster":      {"", "", "n", "cluster name: empty"},
		"no node":         {"", "c", "", "node name: empty"},
		"slash":           {"", "a/b", "n", "is not allowed"},
		"control":         {"", "c", "a\nb", "is not allowed"},
		"long":            {"", "c", strings.Repeat("n", 254), "254 bytes"},
		"not UTF-8":       {"", "c", "\xff", "not UTF-8"},
		"torn":            {`{"version": 1, "clus`, "c", "n", "restore the file"},
		"empty":           {" ", "c", "n", "restore the file"},
		"newer":           {`{"version": 2, "cluster":"c", "node":"n", "server_id":"x"}`, "c", "n", "upgrade varve"},
		"no id":           {`{"version": 1, "cluster":"c", "node":"n"}`, "c", "n", "server_id: empty"},
		"a field we lack": {`{"version": 1, "x": 1}`, "c", "n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.file != "" {
				if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := LoadOrCreate(dir, tc.cluster, tc.node)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestRaftConfig(t *testing.T) {
	id := Identity{Cluster: "c", Node: "n", ServerID: "s"}
	c := RaftConfig(id)
	if err := raft.ValidateConfig(c); err != nil {
		t.Error(err)
	}
	if c.LocalID != "s" {
		t.Errorf("local id %s", c.LocalID)
	}
}
