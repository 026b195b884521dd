//! What is to be done with which partition: a comparison of two lists.

use std::collections::BTreeMap;

use tailrace_engine::{Digest, PartitionKey};

use super::report::Action;

/// The rows of a partition that count, on one side.
pub(super) type Digests = BTreeMap<PartitionKey, Digest>;

/// A partition, and what is to become of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) key: PartitionKey,
    pub(super) action: Action,
    /// Here, before; the default where there was nothing.
    pub(super) here: Digest,
    /// There; the default where there is nothing.
    pub(super) there: Digest,
}

/// All partitions of both sides, in key order. A partition without rows that count is as one that is not there.
pub(super) fn plan(here: Digests, there: Digests, delete_extra: bool) -> Vec<Item> {
    let mut items: BTreeMap<PartitionKey, Item> = BTreeMap::new();
    for (key, digest) in here.into_iter().filter(|(_, digest)| digest.rows > 0) {
        let action = if delete_extra { Action::Removed } else { Action::Extra };
        items.insert(key.clone(), Item { key, action, here: digest, there: Digest::default() });
    }
    for (key, digest) in there.into_iter().filter(|(_, digest)| digest.rows > 0) {
        let copied = || Item { key: key.clone(), action: Action::Copied, here: Digest::default(), there: digest };
        let item = items.entry(key.clone()).or_insert_with(copied);
        if item.here.rows > 0 {
            item.there = digest;
            item.action = if item.here.same_values(&digest) { Action::Equal } else { Action::Replaced };
        }
    }
    items.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agrees_is_left_alone() {
        let key = |name: &'static str| PartitionKey(bytes::Bytes::from_static(name.as_bytes()));
        let digest = |rows, values| Digest { rows, values, identity: 0 };
        let here = [("a", 1, 1), ("b", 1, 2), ("c", 3, 9), ("d", 0, 0), ("e", 0, 0), ("f", 2, 5)];
        let there = [("a", 1, 1), ("b", 1, 3), ("d", 4, 4), ("e", 0, 0), ("f", 3, 5), ("g", 1, 1)];
        let digests = |list: &[(&'static str, u64, u128)]| -> Digests {
            list.iter().map(|(name, rows, values)| (key(name), digest(*rows, *values))).collect()
        };
        let actions = |delete_extra| {
            let items = plan(digests(&here), digests(&there), delete_extra);
            let shown = items.iter().map(|item| (String::from_utf8(item.key.0.to_vec()).unwrap(), item.action));
            shown.collect::<Vec<_>>()
        };
        let expected = |extra| {
            [
                ("a", Action::Equal),
                ("b", Action::Replaced),
                ("c", extra),
                ("d", Action::Copied),
                ("f", Action::Replaced),
                ("g", Action::Copied),
            ]
            .map(|(name, action)| (name.to_owned(), action))
        };
        assert_eq!(actions(true), expected(Action::Removed));
        assert_eq!(actions(false), expected(Action::Extra));
    }
}
