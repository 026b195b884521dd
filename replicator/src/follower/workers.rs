//! The threads that decode and check records: so many at a time, each with a number.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// See the module.
#[derive(Debug)]
pub(crate) struct Workers {
    permits: Arc<Semaphore>,
    free: Mutex<Vec<u32>>,
}

impl Workers {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let count = count.max(1);
        let free = (0..u32::try_from(count).unwrap_or(u32::MAX)).rev().collect();
        Arc::new(Self { permits: Arc::new(Semaphore::new(count)), free: Mutex::new(free) })
    }

    /// Runs work that is over sooner than another thread would begin it, here, unless all workers are busy.
    pub(crate) fn run_here<T>(&self, work: impl FnOnce(u32) -> T) -> Option<T> {
        let _permit = self.permits.try_acquire().ok()?;
        let worker = self.free.lock().pop().unwrap_or_default();
        let result = work(worker);
        self.free.lock().push(worker);
        Some(result)
    }

    /// Runs `work` on a blocking thread once a worker is free. `None` when the runtime goes down.
    pub(crate) async fn run<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(u32) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let worker = self.free.lock().pop().unwrap_or_default();
            let result = work(worker);
            self.free.lock().push(worker);
            drop(permit);
            result
        });
        done.await.ok()
    }
}
