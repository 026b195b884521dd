//! Where plans run.
//!
//! Operators of a query compute for long without letting anybody else run, so queries have threads of their own ([`threads`]):
//! sockets, commits, replication, timers and cancel requests never wait for them. What is so small that a change of threads would
//! cost more than it does runs where it is asked for ([`small`]). [`yielding`] has operators that multiply rows let others
//! run, and be cancelled, in between.

mod small;
mod threads;
mod yielding;

pub(crate) use threads::QueryThreads;
pub(crate) use yielding::Yielding;
