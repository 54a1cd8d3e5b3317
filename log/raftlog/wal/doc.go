// Package wal is a raft.LogStore in segment files: what raft stores at once is one
// frame, one write and one fdatasync into blocks that the file has already, so the
// file system has nothing to note beside it.
//
// # Segments
//
// Segments are named by their number, without gaps, and read in that order:
//
//	00000000000000000001.wal    00000000000000000002.wal ...
//	| header | frame | frame | ... | zeros up to the file's size |
//
// A segment gets its name once its header and its zeros are durable. The one after
// it is made ready in the background. The first is small, each doubles the one
// before up to 16 MiB.
//
//	header, 64 bytes: magic | version u32 | 0 u32 | number u64 | salt u64 | file size u64 | 0 ... | CRC32C u32
//	frame, padded to 8 bytes: CRC32C u32 | length u32 | first u64 | count u32 | kind u32 | body
//
// All numbers are little endian. A frame's CRC covers the segment's salt, a random
// number, and everything after the CRC, so that no bytes that somebody lets Raft
// store can look like a frame. The body of an entries frame holds count entries
// with indexes from first on. A truncation frame voids the entries from first on. A
// closing frame says that the store was closed in order.
//
// # What a crash may leave, and what it may not
//
// Every frame is durable before the next one is written, so a crash leaves at most
// one that is torn: the last. It was never acknowledged, and Open overwrites it with
// zeros. Bytes that are no frame are torn only if
//
//   - they are in the last segment, and
//   - no whole frame lies anywhere after them.
//
// Everything else is refused as corrupt and left as it is: a flipped bit in any
// frame but the last; in the last one too, once the store was closed in order.
// A bit flipped in the last frame of a process that was killed looks like a torn
// write. Package raftlog finds that loss, for its history holds the events.
package wal
