// Package history keeps every committed record of the log in segment files, so
// that Raft may compact its own log without the past being lost.
//
// A directory holds segments named by their first revision in 20 decimal digits.
// All integers are little-endian.
//
//	segment = header record*
//	header  = magic "VARVEHST" | version u32 | 0 u32 | first revision u64 |
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
// What is not yet durable here is durable in the Raft log, until a snapshot's
// Persist has called Sync.
package history
