//! Files: the only crate of subbyte that opens, maps, reads, writes, syncs and renames.
