// Package history keeps every committed record of the log in segment files, so
// that Raft may compact its own log without the past being lost.
//
// A directory holds segments named by their first revision in 20 decimal digits.
// All integers are little-endian.
//
// A segment that is written to is plain:
//
//	segment = header record*
//	header  = magic "VARVEHST" | version u32 (1) | 0 u32 | first revision u64 |
//	          chain before it [32] | CRC32C of the 56 bytes before u32 | 0 u32
//	record  = length u32 | CRC32C u32 | body
//	body    = revision u64 | effective time i64 | outcome u8 | reason length u32 |
//	          reason | event | chain [32]
//
// length counts the body; the CRC covers length and body. Only the last segment
// is ever written to, and it is made durable before the next one is begun: so
// only its end can be torn by a crash, and only that is repaired.
//
//	first                                  synced        last
//	  |-- segment --|-- segment --|-- last segment --|~~~~~|
//	   sealed, durable, immutable    durable          in the page cache;
//	                                                  Raft still has it
//
// A sealed segment may be packed (Pack): the same header with version 2, then
// blocks of compressed records, each checked and decompressed by itself.
//
//	packed  = header block* end
//	block   = magic "vblk" | kind u8 | 0 [3] | records u32 | first revision u64 |
//	          time of the first i64 | chain before it [32] | chain after the last [32] |
//	          bytes once decompressed u32 | bytes u32 | CRC32C of them u32 | 0 u32 |
//	          CRC32C of the 108 bytes before u32 | zstd(entry*)
//	entry   = outcome u8 | time since the one before varint |
//	          reason length uvarint | reason | event length uvarint | event
//
// Chain values are not stored: a reader computes them, and each block must lead
// from the one in its header to the other. An exported file (Exporter) is a packed
// segment with two more kinds of blocks; in a filtered one, an entry of outcome 0
// has the event's leaf in place of reason and event.
//
// The file anchors has the chain value before each segment once more, so that one of
// another log is known even where its neighbours are lost. What damage hits cannot be
// read (Lost), and all the rest can; what Raft's log still has is put back (Heal). The
// file floor says with which revision the history begins, so that segments which are
// missing before the first one are known as lost.
//
// Beside the segments, NNN.checkpoint holds the state at revision NNN (zstd), from
// which what follows can be replayed. Files that end in ".new" are being written.
//
// What is not yet durable here is durable in the Raft log, until a snapshot's
// Persist has called Sync.
package history
