//! End to end: real `tailrace` processes, real files, real QUIC, and PostgreSQL clients.
//!
//! | file | what is tested |
//! |---|---|
//! | `tutorial_page` | `docs/replication.md`, block by block, as a reader types it |
//! | `demo`, `psql`, `binary` | the demo, the tutorial's statements in psql, the command line |
//! | `replicate` | rows arrive, at one replica and at two, from before replication was on |
//! | `burst` | 96,000 values at once, in many commits and in one |
//! | `stop_and_start`, `offline` | switched off and on, or away: with the log still there, and without |
//! | `drop_and_recreate` | the same name again, for a database and for a table of another schema |
//! | `idle_source` | a database in which nothing happens does not hold its neighbour's log |
//! | `states` | failing tasks, skipped, retried, discarded, repaired; what is shown meanwhile |
//! | `lag`, `synchronous`, `topologies` | how far behind; commits that wait for replicas; replicas of replicas |
//! | `synchronize` | a table made equal to another cluster's, killed on the way |
//! | `heavy` | queries that compute for ever, beside replication, commits and a stop |
//! | `tail` | a table's changes in a shell |
//! | `flight` | another cluster as a catalog; Flight SQL clients of other makers (`flight.py`) |
//! | `psycopg` | a Python driver of PostgreSQL (`psycopg_client.py`) |
//! | `backup_shell` | `tailrace backup`, `restore` and `sync`: what they print, and how they end |
//! | `jobs` | statements that run when they are due: killed, stopped, from a shell and from psql |
//! | `crash`, `archive`, `wal` | processes that are killed; the log's copy, and what reads it offline |
//!
//! A link of 100 ms that stalls, and a primary of a later version: `replicator/tests/it/`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may stop at the first surprise")]

mod harness;
#[path = "../shared/port.rs"]
mod port;

mod archive;
mod backup;
mod backup_cancel;
mod backup_shell;
mod binary;
mod burst;
mod crash;
mod demo;
mod drop_and_recreate;
mod flight;
mod heavy;
mod idle_source;
mod jobs;
mod lag;
mod offline;
mod psql;
mod psycopg;
mod replicate;
mod states;
mod stop_and_start;
mod synchronize;
mod synchronous;
mod tables;
mod tail;
mod topologies;
mod tutorial_page;
mod verify;
#[allow(dead_code, reason = "shared with the tests of faults")]
#[path = "../chaos/volume.rs"]
mod volume;
mod wal;
