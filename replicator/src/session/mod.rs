//! The protocol as state machines without sockets or clock: what came in and the time are arguments, what is to be done
//! comes out of `poll_action`. The tasks around them only do I/O.

mod decide;
pub(crate) mod follower;
pub(crate) mod publisher;
#[cfg(test)]
mod simulation;

pub(crate) use decide::{Catalog, HistoryView};
pub(crate) use follower::{Acceptance, FollowerAction, FollowerSession, Outcome};
pub(crate) use publisher::{PublisherAction, PublisherSession};

use std::time::Duration;

/// How long the other side may take for `hello` or `welcome`.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Most feeds and repairs that one session may have open.
pub(crate) const FEEDS_MAX: usize = 16_384;
/// Longest name of a database or cluster, bytes.
pub(crate) const NAME_BYTES_MAX: usize = 256;
