//! Names in the log what is stuck, on either side, and for how long. Nothing is done about it: a cause that is known is
//! a state with a remedy, and this is for the others.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio_util::sync::CancellationToken;

/// From when on something that stands still is named, and how often it is looked at.
const STUCK_MIN: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Looks at what stands still until `stop` fires. `look` gives a key, what to say, and for how long it has stood still.
pub(crate) async fn watch<K: Hash + Eq + Send>(
    stop: CancellationToken,
    look: impl Fn() -> Vec<(K, String, Duration)> + Send,
) {
    let mut named = Named::default();
    while pause(&stop).await {
        for (what, since) in named.news(look()) {
            tracing::warn!("{what}, for {} s now", since.as_secs());
        }
    }
}

/// `false` when it is over.
async fn pause(stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(LOOK_INTERVAL) => true,
        () = stop.cancelled() => false,
    }
}

/// What was named, and when it will be named again: after twice the time.
struct Named<K> {
    next: HashMap<K, Duration>,
}

impl<K> Default for Named<K> {
    fn default() -> Self {
        Self { next: HashMap::new() }
    }
}

impl<K: Hash + Eq> Named<K> {
    /// What is to be named now.
    fn news(&mut self, stuck: Vec<(K, String, Duration)>) -> Vec<(String, Duration)> {
        let mut next = HashMap::with_capacity(stuck.len());
        let mut news = Vec::new();
        for (key, what, since) in stuck {
            let mut due = self.next.get(&key).copied().unwrap_or(STUCK_MIN);
            if since >= due {
                news.push((what, since));
                due = since * 2;
            }
            next.insert(key, due);
        }
        self.next = next;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stuck_is_named_again_after_twice_the_time() {
        let mut named = Named::default();
        let mut says = |seconds: u64| named.news(vec![("a", String::new(), Duration::from_secs(seconds))]).len();
        assert_eq!((says(10), says(29), says(30), says(35), says(59), says(60), says(90)), (0, 0, 1, 0, 0, 1, 0));
        assert!(named.news(Vec::new()).is_empty());
        assert_eq!(named.news(vec![("a", String::new(), Duration::from_secs(31))]).len(), 1, "it had moved meanwhile");
    }
}
