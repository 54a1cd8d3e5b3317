// Package journal keeps what a node must act on before the cluster has it: records
// that are durable when Append returns, numbered without gaps, and kept until the
// log has them and nothing live depends on them. It keeps bytes and knows nothing
// of what they mean.
//
//	DIR/00000000000000000001.journal   records 1 to 812, those that are still needed
//	DIR/00000000000000000813.journal   records 813 on; the last file is written to
//
// A file is a header and records:
//
//	header   "varve journal 1\n"
//	record   length uint32 of the bytes, CRC32C uint32 over what follows, number
//	         uint64, how many records of the same write stand before it uint32, bytes
//
// All integers are little-endian. The next write begins when the one before it is
// durable. So what is cut short or damaged in the last write of the last file was
// never promised to anyone, and is cut off at Open; anywhere else it is ErrDamaged.
// With it go the zeros that the last file is filled with ahead of its records.
//
// Compaction writes the records that stay of all closed files into one, puts it in
// the place of the first and removes the others, oldest first. A crash in between
// leaves records that were to go; they are the newest of those, and in order, so
// that replaying them does what it did when they were new.
package journal
