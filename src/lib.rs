//! The `tailrace` binary's parts: command line, settings, composition of a node, and the demo.
//!
//! `main` → [`cli`] → [`init`] | [`serve`] | [`demo`]; the last two build nodes with [`compose`] from [`config`].
//! `tailrace tail` (`tail/`), `job`, `backup`, `restore` and `sync` (each in its folder, over `client/`) are clients of a running node; `tailrace wal` (`wal/`) reads a log without a node.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backup;
pub mod cli;
mod client;
pub mod compose;
pub mod config;
pub mod demo;
mod error;
pub mod init;
mod job;
mod restore;
pub mod serve;
mod sync;
mod tail;
mod wal;

pub use error::{Error, Result};
