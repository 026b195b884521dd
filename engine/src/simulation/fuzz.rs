//! What the fuzz targets in `engine/fuzz/` call, and the test that runs over their corpus. Each takes any bytes, must not
//! panic, and asserts what has to hold of what was accepted.

pub use crate::manifest::fuzz::{checkpoint, manifest, manifest_log, node};
