//! What may be removed, decided purely.

use std::time::Duration;

use crate::Lsn;

/// A pin, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    /// How long its marks have stood still while there was something to move on to.
    pub(crate) stalled: Duration,
}

/// A segment, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) last: Lsn,
    pub(crate) is_sealed: bool,
}

/// Why a pin is lost, if it is over a budget.
pub(crate) fn overdrawn(held: Held, bytes_max: u64, age_max: Duration) -> Option<String> {
    if held.bytes > bytes_max {
        return Some(format!("it holds {} bytes of log, its budget is {bytes_max}", held.bytes));
    }
    if held.stalled > age_max {
        return Some(format!(
            "it has not moved for {} s, its budget is {} s",
            held.stalled.as_secs(),
            age_max.as_secs()
        ));
    }
    None
}

/// Whether segments that could go are kept for a pin that needs `lsn`, beside whoever else needs them. `needed`: the
/// oldest record that each open transaction needs.
pub(crate) fn extends(segments: &[Extent], flushed: Lsn, needed: &[Lsn], lsn: Lsn) -> bool {
    let without = removable(segments, flushed, needed.iter().copied());
    let with = removable(segments, flushed, needed.iter().copied().chain([lsn]));
    with < without
}

/// How many segments from the oldest on can go: those whose records are all flushed and that nobody needs.
/// `needed`: the oldest record that each live pin and each open transaction needs.
pub(crate) fn removable(segments: &[Extent], flushed: Lsn, needed: impl IntoIterator<Item = Lsn>) -> usize {
    let first_needed = needed.into_iter().min().unwrap_or(Lsn(u64::MAX));
    segments
        .iter()
        .take_while(|segment| segment.is_sealed && segment.last <= flushed && segment.last < first_needed)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: [Extent; 3] = [
        Extent { last: Lsn(10), is_sealed: true },
        Extent { last: Lsn(20), is_sealed: true },
        Extent { last: Lsn(25), is_sealed: false },
    ];

    #[test]
    fn whole_segments_below_every_mark() {
        for (flushed, needed, count) in [
            (9, None, 0),
            (10, None, 1),
            (19, None, 1),
            (20, None, 2),
            (25, None, 2),
            (25, Some(11), 1),
            (25, Some(10), 0),
            (25, Some(21), 2),
            (10, Some(21), 1),
        ] {
            assert_eq!(removable(&SEGMENTS, Lsn(flushed), needed.map(Lsn)), count, "flushed {flushed}, {needed:?}");
        }
    }

    #[test]
    fn a_pin_extends_the_log_where_it_alone_holds_a_segment() {
        for (flushed, transaction, pin, extended) in [
            (25, None, 25, false),
            (25, None, 21, false),
            (25, None, 20, true),
            (25, None, 1, true),
            (19, None, 11, false),
            (9, None, 1, false),
            (25, Some(5), 1, false),
            (25, Some(15), 1, true),
        ] {
            let needed: Vec<Lsn> = transaction.map(Lsn).into_iter().collect();
            let found = extends(&SEGMENTS, Lsn(flushed), &needed, Lsn(pin));
            assert_eq!(found, extended, "flushed {flushed}, transaction {transaction:?}, pin {pin}");
        }
    }

    #[test]
    fn budgets() {
        let day = Duration::from_secs(86_400);
        let held = |bytes, stalled| Held { bytes, stalled };
        assert_eq!(overdrawn(held(100, day), 100, day), None);
        assert!(overdrawn(held(101, day), 100, day).unwrap().contains("101 bytes"));
        assert!(overdrawn(held(1, day * 2), 100, day).unwrap().contains("172800 s"));
    }
}
