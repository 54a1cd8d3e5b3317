// Package eventpb is the events of the log, generated from event.proto, and their limits.
package eventpb

// MaxNameAddresses is how many addresses a DnsObserved or a DnsCollected may have. Of
// more there are several events.
const MaxNameAddresses = 4096
