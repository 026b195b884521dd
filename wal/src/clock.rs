//! The seam for time and random numbers. Everything else in the workspace takes time from here; a lint bans the
//! ambient clocks.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::CommitTime;

/// Source of time and of random numbers.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall clock; may jump either way.
    fn now(&self) -> CommitTime;
    /// Time since an arbitrary start; never goes back. Ages use this.
    fn monotonic(&self) -> Duration;
    /// A random number: segments' salts and epochs are made of it.
    fn random(&self) -> u64 {
        rand::random()
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { start: Instant::now() })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the seam")]
impl Clock for SystemClock {
    fn now(&self) -> CommitTime {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        CommitTime(micros)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
