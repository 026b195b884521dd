//! The engine through its public face, on real files.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod backup;
mod backup_faults;
mod basic;
mod changes;
mod choice;
mod corpus;
mod ddl;
mod dead_letters;
mod digests;
mod faults;
mod flush;
mod full_disk;
mod job;
mod namesakes;
mod partial_repair;
mod partitions;
mod repair;
mod replica;
mod support;
mod transactions;
