//! The log through its public face, on real files.

#![allow(clippy::unwrap_used)]

mod append;
mod support;
