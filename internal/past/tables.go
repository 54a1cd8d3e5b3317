package past

import (
	"context"
	"fmt"
	"sync"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// place is a node at a revision, as a key: "revision/node" in a form that sorts.
func place(revision log.Revision, node string) string { return fmt.Sprintf("%020d/%s", revision, node) }

// Bounds of what is kept of tables: those asked for last, and nodes whose tables
// are brought from one revision to a later one by what changed between them.
const (
	keptTables = 16
	keptNodes  = 4
)

type tablesCache struct {
	done *recent[string, *projections.Tables]

	mu    sync.Mutex // held while tables are made
	nodes *recent[string, *projections.Projection]
}

func newTablesCache() tablesCache {
	return tablesCache{
		done:  newRecent[string, *projections.Tables](keptTables),
		nodes: newRecent[string, *projections.Projection](keptNodes),
	}
}

// Tables is what a node's maps should have held at a revision, exactly as its
// agent projected it. The errors are those of View, and
// projections.ErrUnknownNode for a node that was not in the cluster then.
func (p *Past) Tables(ctx context.Context, revision log.Revision, node string) (*projections.Tables, error) {
	view, err := p.View(ctx, revision)
	if err != nil {
		return nil, err
	}
	if t, ok := p.tables.done.get(place(revision, node)); ok {
		return t, nil
	}
	c := &p.tables
	c.mu.Lock()
	defer c.mu.Unlock()
	of, ok := c.nodes.get(node)
	if !ok {
		of = projections.New(node, projections.Options{})
		c.nodes.put(node, of)
	}
	t, _, err := of.Update(view)
	if err != nil {
		return nil, fmt.Errorf("tables at revision %d: %w", revision, err)
	}
	c.done.put(place(revision, node), t)
	return t, nil
}
