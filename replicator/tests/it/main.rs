//! Replication through its public face: real engines, files, QUIC on loopback.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

mod admission;
mod feeds;
mod flow;
mod lifecycle;
mod states;
mod support;
mod trouble;
