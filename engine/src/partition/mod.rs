//! Value partitions: transforms, keys, splitting, paths.

mod describe;
mod key;
mod path;
mod scheme;
mod transform;

pub use key::{KEY_BYTES_MAX, PartitionKey};
pub use path::{DatafilePath, datafile_path};
pub use scheme::{ColumnBounds, PartitionScheme};
pub use transform::Transform;

/// Two digits per byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
