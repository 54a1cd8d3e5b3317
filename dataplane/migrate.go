package dataplane

import (
	"context"
	"fmt"
)

// migrate takes over from the programs of another layout, if there are any: an
// upgrade or a downgrade of the binary. It follows the first Sync, because the
// programs need all rows before a packet meets them. An error leaves traffic under
// the old ones, and the next Sync tries again.
func (d *Dataplane) migrate(ctx context.Context) error {
	if !d.objs.Migrating() {
		return nil
	}
	d.pins.Lock()
	defer d.pins.Unlock()
	return d.node.do(func() error {
		taken, err := d.objs.Migrate(ctx)
		if err != nil {
			return fmt.Errorf("upgrade of the datapath: %w", err)
		}
		for _, ifindex := range taken {
			if err := d.guard.Attach(ifindex); err != nil {
				return fmt.Errorf("upgrade of the datapath: %w", err)
			}
		}
		d.log.Info("datapath upgraded", "interfaces", len(taken))
		return nil
	})
}
