//! Cancel requests: which connection runs what, and who may stop it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// All connections of a server by process number.
#[derive(Debug, Default)]
pub(crate) struct CancelRegistry {
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    last_pid: i32,
    by_pid: HashMap<i32, Entry>,
}

#[derive(Debug)]
struct Entry {
    secret: i32,
    running: Option<CancellationToken>,
}

/// A connection's place in the registry; it leaves on drop.
#[derive(Debug)]
pub(crate) struct CancelKey {
    registry: Arc<CancelRegistry>,
    pub(crate) pid: i32,
    pub(crate) secret: i32,
}

/// A statement that cancel requests reach, until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    registry: Arc<CancelRegistry>,
    pid: i32,
}

impl CancelRegistry {
    /// Gives a connection a process number that no other has, and a secret.
    pub(crate) fn register(self: &Arc<Self>) -> CancelKey {
        let secret = rand::random();
        let mut connections = self.connections.lock();
        let pid = loop {
            connections.last_pid = connections.last_pid.checked_add(1).unwrap_or(1);
            if !connections.by_pid.contains_key(&connections.last_pid) {
                break connections.last_pid;
            }
        };
        connections.by_pid.insert(pid, Entry { secret, running: None });
        CancelKey { registry: Arc::clone(self), pid, secret }
    }

    /// Cancels what connection `pid` runs now, if `secret` is its own. What it runs next is not touched. The requester
    /// is not told what came of it.
    pub(crate) fn cancel(&self, pid: i32, secret: i32) {
        let connections = self.connections.lock();
        if let Some(entry) = connections.by_pid.get(&pid)
            && entry.secret == secret
            && let Some(running) = &entry.running
        {
            running.cancel();
        }
    }

    fn set(&self, pid: i32, running: Option<CancellationToken>) {
        if let Some(entry) = self.connections.lock().by_pid.get_mut(&pid) {
            entry.running = running;
        }
    }
}

impl CancelKey {
    /// Lets cancel requests fire `token` until the guard is dropped.
    pub(crate) fn run(&self, token: CancellationToken) -> Running {
        self.registry.set(self.pid, Some(token));
        Running { registry: Arc::clone(&self.registry), pid: self.pid }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.registry.set(self.pid, None);
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.registry.connections.lock().by_pid.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_secret_cancels_and_only_what_runs() {
        let registry = Arc::new(CancelRegistry::default());
        let (first, second) = (registry.register(), registry.register());
        assert_ne!(first.pid, second.pid);
        let token = CancellationToken::new();
        let running = first.run(token.clone());
        registry.cancel(first.pid, first.secret.wrapping_add(1));
        registry.cancel(second.pid, second.secret);
        assert!(!token.is_cancelled());
        registry.cancel(first.pid, first.secret);
        assert!(token.is_cancelled());
        drop(running);

        let next = CancellationToken::new();
        registry.cancel(first.pid, first.secret);
        let _running = first.run(next.clone());
        assert!(!next.is_cancelled(), "a late request must not reach the next statement");
    }
}
