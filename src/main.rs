//! The `tailrace` binary.

fn main() {}
