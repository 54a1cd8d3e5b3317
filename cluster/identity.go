package cluster

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"unicode"
	"unicode/utf8"

	"github.com/varve-net/varve/internal/durable"
)

// ErrOtherNode is returned by LoadOrCreate for a directory that belongs to
// another node or another cluster.
var ErrOtherNode = errors.New("directory belongs to another node")

// Identity says who a node is. It never changes during the life of its
// directory.
type Identity struct {
	// Cluster and Node are names, chosen by the operator.
	Cluster string
	Node    string
	// ServerID is this directory's id in Raft: random, so that a node which lost
	// its disk comes back as another server and cannot deny what it once
	// acknowledged.
	ServerID string
}

const (
	identityFile    = "identity.json"
	identityVersion = 1
	maxName         = 253 // of a DNS name
)

// stored is the content of identity.json.
type stored struct {
	Version  int    `json:"version"`
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	ServerID string `json:"server_id"`
}

// LoadOrCreate reads the identity kept in a directory. If there is none, it
// makes one with a new ServerID and returns once that is durable. The error is
// ErrOtherNode if the directory's names are not the given ones.
func LoadOrCreate(dir, cluster, node string) (Identity, error) {
	if err := checkName("cluster name", cluster); err != nil {
		return Identity{}, err
	}
	if err := checkName("node name", node); err != nil {
		return Identity{}, err
	}
	id, err := Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return create(dir, cluster, node)
	}
	if err != nil {
		return Identity{}, err
	}
	if id.Cluster != cluster || id.Node != node {
		return Identity{}, fmt.Errorf("%w: %s is of node %q in cluster %q, not of node %q in cluster %q; "+
			"correct the names or choose another directory", ErrOtherNode, dir, id.Node, id.Cluster, node, cluster)
	}
	return id, nil
}

// Load reads the identity kept in a directory. The error is fs.ErrNotExist if there is
// none.
func Load(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, err
	}
	var s stored
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Identity{}, fmt.Errorf("%s: %w; restore the file from a copy", path, err)
	}
	if s.Version != identityVersion {
		return Identity{}, fmt.Errorf("%s: version %d, this varve reads %d; upgrade varve", path, s.Version, identityVersion)
	}
	err = errors.Join(checkName("cluster", s.Cluster), checkName("node", s.Node), checkName("server_id", s.ServerID))
	if err != nil {
		return Identity{}, fmt.Errorf("%s: %w; restore the file from a copy", path, err)
	}
	return Identity{Cluster: s.Cluster, Node: s.Node, ServerID: s.ServerID}, nil
}

// create writes the file under another name first: whoever finds identity.json
// finds all of it.
func create(dir, cluster, node string) (Identity, error) {
	random := make([]byte, 16)
	rand.Read(random) // never fails
	id := Identity{Cluster: cluster, Node: node, ServerID: hex.EncodeToString(random)}
	b, err := json.MarshalIndent(stored{identityVersion, id.Cluster, id.Node, id.ServerID}, "", "  ")
	if err != nil {
		return Identity{}, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return Identity{}, err
	}
	path := filepath.Join(dir, identityFile)
	err = durable.Replace(path, 0o640, func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
	if err != nil {
		return Identity{}, err
	}
	return id, nil
}

func checkName(field, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: empty; give a name", field)
	case len(name) > maxName:
		return fmt.Errorf("%s: %d bytes, at most %d are allowed", field, len(name), maxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s %q: not UTF-8", field, name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) || r == '/' || r == ' ' {
			return fmt.Errorf("%s %q: %q is not allowed in a name", field, name, r)
		}
	}
	return nil
}
