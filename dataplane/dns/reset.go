package dns

import "time"

// clockTolerance is how far the wall clock may move against the monotonic one before
// what the journal says is written anew. To set a clock by more is to set it; less is
// the drift that is corrected all the time.
const clockTolerance = 5 * time.Second

// followClock writes all facts down anew after the wall clock was set: what the journal,
// and the log, say of them is by the clock as it was, and would after a restart hold them
// open for hours too long, or close them too early. What is open meanwhile is by the
// monotonic clock, and stays as it is. If the journal cannot be written it is tried again.
func (k *keeper) followClock() {
	k.writing.Lock()
	defer k.writing.Unlock()
	is := k.clock().offset()
	by := time.Duration(is - k.offset)
	if by.Abs() <= clockTolerance {
		return
	}
	b := newBatch(k)
	k.mu.Lock()
	for _, e := range k.facts.endpoints {
		for _, n := range e.names {
			o := b.of(e.key, n.name)
			// A later expiry replaces an earlier one; an earlier one needs it gone.
			o.event.Chain, o.anew = n.chain, by < 0
			for _, x := range n.addresses {
				o.add(x.addr, x.expires)
				x.kept = longAgo
			}
		}
	}
	clear(k.refreshes)
	k.mu.Unlock()
	if b.commit() != nil {
		return
	}
	k.offset = is
	k.logger.Warn("the wall clock was set; what names have opened stays open as long as before, and its expiries are written down anew",
		"by", by, "names", len(b.events))
}
