//! A log on a disk without a free byte: it opens, it is read, and it goes on when there is space.

use std::sync::Arc;

use tailrace_wal::{
    LogConfig, LogError, Lsn, Persistence,
    simulation::{Failure, SimulatedDisk},
};

use crate::support::{HISTORY, append, append_numbers, commit, number, open_on, replay, start};

const LARGE: usize = 5 << 20;

/// How the log ended.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Closed,
    /// The process was killed, with records that are not known to be durable.
    Killed,
    /// The same right after a segment was begun.
    KilledAfterRoll,
    /// The same after a write that found no space.
    KilledWhenFull,
}

fn config() -> LogConfig {
    LogConfig { sync_interval: std::time::Duration::from_secs(3600), ..LogConfig::new("log") }
}

/// A disk with a log of `count` records that ended so.
async fn ended(ending: Ending, count: u32) -> SimulatedDisk {
    let disk = SimulatedDisk::new(5);
    let (log, recovery) = open_on(config(), Lsn::ZERO, disk.shared()).unwrap();
    start(&log, &recovery, HISTORY);
    append_numbers(&log, 0..count / 2).await;
    log.roll().await.unwrap();
    for number in count / 2..count {
        let record = commit(HISTORY, &number.to_le_bytes());
        log.append(record, Persistence::Async).await.unwrap().written().await.unwrap();
    }
    match ending {
        Ending::Closed => {
            log.close().await.unwrap();
            disk.fork()
        }
        Ending::Killed => disk.fork(),
        Ending::KilledAfterRoll => {
            log.roll().await.unwrap();
            disk.fork()
        }
        Ending::KilledWhenFull => {
            disk.fail_from(0, Failure::Full);
            let refused = append(&log, commit(HISTORY, b"refused")).await;
            assert!(matches!(refused, Err(LogError::Full { .. })), "{refused:?}");
            disk.fork()
        }
    }
}

fn numbers(log: &tailrace_wal::Log) -> Vec<u32> {
    replay(log, Lsn::ZERO).unwrap().iter().map(number).collect()
}

#[tokio::test]
async fn a_log_opens_on_a_full_disk_and_goes_on_when_there_is_space() {
    for ending in [Ending::Closed, Ending::Killed, Ending::KilledAfterRoll, Ending::KilledWhenFull] {
        let mut disk = ended(ending, 8).await;
        // Every start leaves it as it was, however often it is started.
        for _ in 0..3 {
            disk.set_capacity(Some(disk.used_bytes()));
            let (log, recovery) = open_on(config(), Lsn::ZERO, disk.shared()).unwrap();
            assert_eq!(recovery.last, Lsn(8), "{ending:?}");
            start(&log, &recovery, HISTORY);
            assert_eq!(numbers(&log), (0..8).collect::<Vec<_>>(), "{ending:?}");
            // What was written ahead is free for records, and this one is larger.
            let refused = append(&log, commit(HISTORY, &[0; LARGE])).await;
            assert!(matches!(refused, Err(LogError::Full { .. })), "{ending:?}: {refused:?}");
            assert_eq!(numbers(&log), (0..8).collect::<Vec<_>>(), "{ending:?}");
            let next = disk.fork();
            drop(log);
            disk = next;
        }
        disk.set_capacity(None);
        let (log, recovery) = open_on(config(), Lsn::ZERO, Arc::new(disk.clone())).unwrap();
        start(&log, &recovery, HISTORY);
        append_numbers(&log, 8..10).await;
        assert_eq!(numbers(&log), (0..10).collect::<Vec<_>>(), "{ending:?}");
        log.roll().await.unwrap();
        append_numbers(&log, 10..11).await;
        let left = disk.fork();
        drop(log);
        for disk in [disk, left] {
            let (log, _) = open_on(config(), Lsn::ZERO, disk.shared()).unwrap();
            assert_eq!(numbers(&log), (0..11).collect::<Vec<_>>(), "{ending:?}");
        }
    }
}

#[tokio::test]
async fn space_that_comes_while_it_runs_is_used() {
    for ending in [Ending::Closed, Ending::Killed, Ending::KilledAfterRoll, Ending::KilledWhenFull] {
        let disk = ended(ending, 6).await;
        disk.set_capacity(Some(disk.used_bytes()));
        let (log, recovery) = open_on(config(), Lsn::ZERO, disk.shared()).unwrap();
        start(&log, &recovery, HISTORY);
        append(&log, commit(HISTORY, &[0; LARGE])).await.unwrap_err();
        disk.set_capacity(None);
        append_numbers(&log, 6..9).await;
        assert_eq!(numbers(&log), (0..9).collect::<Vec<_>>(), "{ending:?}");
        // What a loss of power leaves is what was acknowledged.
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(3);
        for _ in 0..10 {
            let (log, _) = open_on(config(), Lsn::ZERO, disk.image(&mut random).shared()).unwrap();
            assert_eq!(numbers(&log), (0..9).collect::<Vec<_>>(), "{ending:?}");
        }
    }
}
