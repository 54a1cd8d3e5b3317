package bpf

import (
	"fmt"

	"github.com/varve-net/varve/bpf/abi"
)

// SetConfig writes the switches and lifetimes that all programs read, at once and
// for all endpoints. A new config map is zero and lets nothing through, so this
// comes before the first Attach. Lifetimes must be above 0. It waits for Migrate.
func (o *Objects) SetConfig(c abi.Config) error {
	o.attaching.Lock()
	defer o.attaching.Unlock()
	return o.putConfig(c)
}

func (o *Objects) putConfig(c abi.Config) error {
	for _, t := range []struct {
		field   string
		seconds uint32
	}{
		{"TCPEstablishedSeconds", c.TCPEstablishedSeconds},
		{"TCPSynSeconds", c.TCPSynSeconds},
		{"TCPClosingSeconds", c.TCPClosingSeconds},
		{"OtherSeconds", c.OtherSeconds},
	} {
		if t.seconds == 0 {
			return fmt.Errorf("config: %s is 0, must be above 0 (see abi.DefaultConfig)", t.field)
		}
	}
	if err := o.Config.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("map config: %w", err)
	}
	return nil
}

// GetConfig reads what SetConfig wrote, be it by an earlier process. It waits for
// Migrate.
func (o *Objects) GetConfig() (abi.Config, error) {
	o.attaching.Lock()
	defer o.attaching.Unlock()
	return o.readConfig()
}

func (o *Objects) readConfig() (abi.Config, error) {
	var c abi.Config
	if err := o.Config.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("map config: %w", err)
	}
	return c, nil
}
