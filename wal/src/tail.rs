//! Readers that follow the log and never pass the durable mark.

use crate::{Frame, LogError, Lsn};

/// A reader of one history, or of all.
#[derive(Debug)]
pub struct Tail {
    _private: (),
}

impl Tail {
    /// The next durable record, read now; `None` when there is none yet. Blocks on disk reads.
    pub fn try_next(&mut self) -> Result<Option<Frame>, LogError> {
        todo!()
    }

    /// Waits for the next durable record. Cancel-safe.
    pub async fn next(&mut self) -> Result<Frame, LogError> {
        todo!()
    }

    /// Everything up to here has been returned or belongs to other histories.
    pub fn passed(&self) -> Lsn {
        todo!()
    }
}
