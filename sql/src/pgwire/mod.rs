//! The PostgreSQL wire protocol, version 3.0.
//!
//! A connection is one task that owns its [`Session`](crate::Session), and one that reads frames from its socket, so
//! that a disconnect or a cancel request is seen while a statement runs. Requests are parsed here with a check before
//! every read: the sizes and counts in them come from strangers.
//!
//! The path of a statement: `reader` (frames, size limits) → `frontend` (messages) → `connection` (dispatch) →
//! `simple` or `extended` → `Session` → `rows` (stream, back-pressure) → `encode` (Arrow to wire values) → `backend`
//! (messages) → socket.

mod backend;
mod cancel;
mod connection;
mod encode;
mod extended;
mod frontend;
mod numeric;
mod parameter;
mod reader;
mod rows;
mod simple;
mod startup;
mod types;

pub(crate) use cancel::CancelRegistry;
pub(crate) use connection::{ConnectionContext, serve};

use std::time::Duration;

/// Most connections at a time.
pub(crate) const CONNECTIONS_MAX: usize = 512;

/// Longest time from a connection to its start-up message.
const STARTUP_TIME_MAX: Duration = Duration::from_secs(10);
