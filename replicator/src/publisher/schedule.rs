//! Which of the things on their way to a replica goes first.
//!
//! Left alone, QUIC's streams of one priority go in turns, a packet of each: of sixteen chunks the first would arrive with the
//! last, and the replica would sit idle until then. Here every stream has a priority of its own, so that chunks of a feed arrive one after
//! another, and feeds share the link: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). A stream's tag is the
//! count of bytes where its feed ended, or what the link has served since then, if that is more; the least tag goes first.
//! A feed that was idle is thereby next, and a busy one waits for others no longer than for as many bytes as it sent itself.

use std::collections::HashMap;

use crate::wire::FeedNumber;

/// Bytes of one step of priority: with 2^31 steps a connection lasts 512 TiB before feeds only take turns.
const STEP: u64 = 256 << 10;

/// The tags of one connection.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Tag up to which things were served.
    served: u64,
    /// Where each feed ends that has sent more than that.
    ends: HashMap<FeedNumber, u64>,
}

/// The place of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u64);

impl Tag {
    /// For QUIC: the greater goes first, and all of it after priority 1.
    pub(crate) fn priority(self) -> i32 {
        i32::try_from(self.0 / STEP).map_or(i32::MIN, |steps| -steps)
    }
}

impl Schedule {
    /// The place of the next stream of a feed. One that `is_small` does not move its feed: a few packets are no turn.
    pub(crate) fn next(&mut self, feed: FeedNumber, bytes: usize, is_small: bool) -> Tag {
        let start = self.ends.get(&feed).map_or(self.served, |end| self.served.max(*end));
        if !is_small {
            // Whole steps: two streams of a feed never share a priority.
            self.ends.insert(feed, start + (bytes as u64).next_multiple_of(STEP));
        }
        Tag(start)
    }

    /// The replica has all of a stream.
    pub(crate) fn served(&mut self, tag: Tag) {
        if tag.0 > self.served {
            self.served = tag.0;
            self.ends.retain(|_, end| *end > tag.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FeedNumber = FeedNumber(1);
    const B: FeedNumber = FeedNumber(2);
    const CHUNK: usize = 5_000_000;

    #[test]
    fn a_feeds_streams_go_in_order_and_before_them_what_was_idle() {
        let mut schedule = Schedule::default();
        let busy: Vec<_> = (0..16).map(|_| schedule.next(A, CHUNK, false).priority()).collect();
        assert!(busy.is_sorted_by(|first, second| first > second), "{busy:?}");
        assert!(busy[0] < 1, "control goes before");
        let small = schedule.next(B, 500, true).priority();
        assert!(small >= busy[0]);
        // What is small and follows what is large does not overtake it.
        assert!(schedule.next(A, 500, true).priority() < busy[15]);
    }

    #[test]
    fn feeds_share_a_link_from_when_the_second_comes() {
        let mut schedule = Schedule::default();
        let mut waiting: Vec<(FeedNumber, Tag)> = (0..8).map(|_| (A, schedule.next(A, CHUNK, false))).collect();
        let mut sent: HashMap<FeedNumber, u32> = HashMap::new();
        for round in 0..1_000 {
            if round == 500 {
                waiting.extend((0..8).map(|_| (B, schedule.next(B, CHUNK, false))));
                sent.clear();
            }
            let first =
                waiting.iter().enumerate().max_by_key(|(at, (_, tag))| (tag.priority(), usize::MAX - at)).unwrap().0;
            let (feed, tag) = waiting.remove(first);
            *sent.entry(feed).or_insert(0) += 1;
            schedule.served(tag);
            waiting.push((feed, schedule.next(feed, CHUNK, false)));
        }
        assert!(sent[&A].abs_diff(sent[&B]) <= 16, "{sent:?}");
    }

    #[test]
    fn a_connection_of_any_length_has_priorities() {
        let mut schedule = Schedule::default();
        schedule.served(Tag(u64::MAX / 2));
        assert_eq!(schedule.next(A, CHUNK, false).priority(), i32::MIN);
        assert_eq!(schedule.next(B, CHUNK, false).priority(), i32::MIN);
    }

    #[test]
    fn feeds_that_ended_leave_nothing() {
        let mut schedule = Schedule::default();
        for feed in 0..100 {
            let tag = schedule.next(FeedNumber(feed), CHUNK, false);
            schedule.served(tag);
        }
        let tag = schedule.next(A, 1 << 40, false);
        let after = schedule.next(A, CHUNK, false);
        schedule.served(tag);
        schedule.served(after);
        assert_eq!(schedule.ends.len(), 1);
    }
}
