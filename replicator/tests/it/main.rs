//! Replication through its public face: real engines, files, QUIC on loopback.
//!
//! | file | what is tested |
//! |---|---|
//! | `feeds`, `lifecycle` | records arrive, over restarts of either side, repairs, ends of histories |
//! | `interrupted_repair` | a repair whose session is lost goes on with what it has |
//! | `states` | failing tasks: one database stops alone; skip, retry, repair |
//! | `newer_primary` | an operation that this version does not know: never passed over in silence |
//! | `flow` | raw or compressed as the link is, limits of rate and memory |
//! | `long_transactions` | larger than a replica's memory, or than it takes |
//! | `tables` | a choice of tables |
//! | `slow_link` | 100 ms away, with a link that stalls (`relay`) |
//! | `admission`, `trouble` | who may attach; what is refused |
//! | `verify` | a replica compared with its primary |
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

mod admission;
mod feeds;
mod flow;
mod interrupted_repair;
mod lifecycle;
mod long_transactions;
mod newer_primary;
mod relay;
mod slow_link;
mod states;
mod support;
mod tables;
mod trouble;
mod verify;
