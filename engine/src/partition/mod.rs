//! Value partitions: transforms, keys, splitting, paths.

mod key;
mod path;
mod scheme;
mod transform;

pub use key::PartitionKey;
pub use path::{DatafilePath, datafile_path};
pub use scheme::{ColumnBounds, PartitionScheme};
pub use transform::Transform;
