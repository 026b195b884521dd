//! The `tailrace` binary's parts: command line, settings, composition of a node, and the demo.
//!
//! `main` → [`cli`] → [`init`] | [`serve`] | [`demo`]; the last two build nodes with [`compose`] from [`config`].
//! `tailrace wal` (`wal/`) reads a log without a node.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod compose;
pub mod config;
pub mod demo;
mod error;
pub mod init;
pub mod serve;
mod wal;

pub use error::{Error, Result};
