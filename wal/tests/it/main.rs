//! The log through its public face: on real files, and on a simulated disk where the test is of failures.

#![allow(clippy::unwrap_used)]

mod append;
mod archive;
mod corpus;
mod damage;
mod faults;
mod full;
mod golden;
mod histories;
mod recovery;
mod retention;
mod runs;
mod simulation;
mod support;
mod tail;
mod turns;
