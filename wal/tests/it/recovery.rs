//! Starting on what a crash, or a failing disk, left behind.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use tailrace_wal::{Disk, LogConfig, LogError, Lsn, NodeId, SystemClock, SystemDisk, simulation::SimulatedDisk};

use crate::support::{
    HISTORY, NODE, append, append_numbers, commit, copy_segments, number, open, open_history, open_history_with,
    open_on, open_with, replay, segments, start,
};

/// A folder as a crash leaves it: a sealed segment with numbers 0 to 3, and one being written with 4 to 9 (LSN 5 to 10).
async fn crashed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { sync_interval: Duration::from_secs(3600), ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    append_numbers(&log, 0..4).await;
    log.roll().await.unwrap();
    append_numbers(&log, 4..10).await;
    copy_segments(dir.path())
}

fn numbers(log: &tailrace_wal::Log) -> Vec<u32> {
    replay(log, Lsn::ZERO).unwrap().iter().map(number).collect()
}

/// Where the frames in a segment end, and how long each is: all have the same length here.
const FRAME: u64 = 192 + 128 + 64;
const HEADER: u64 = 4096;

#[tokio::test]
async fn a_crash_loses_nothing_durable() {
    let dir = crashed().await;
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.last, Lsn(10));
    assert_eq!(recovery.torn, None, "zeros ahead are no torn tail");
    assert_eq!(numbers(&log), (0..10).collect::<Vec<_>>());
    drop(log);
    let (log, recovery) = open_history(dir.path());
    assert_eq!(recovery.last, Lsn(10));
    append_numbers(&log, 10..12).await;
    assert_eq!(numbers(&log), (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn torn_tails_are_cut_and_reported() {
    let source = crashed().await;
    for len in (HEADER..HEADER + 6 * FRAME).step_by(32).chain([HEADER + 6 * FRAME - 1]) {
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).pop().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        let (log, recovery) = open_history(dir.path());
        let whole = ((len - HEADER) / FRAME) as u32;
        assert_eq!(recovery.last, Lsn(4 + u64::from(whole)), "cut at {len}");
        assert_eq!(recovery.torn.is_some(), !(len - HEADER).is_multiple_of(FRAME), "cut at {len}: {:?}", recovery.torn);
        if let Some(torn) = &recovery.torn {
            assert!(torn.contains(path.to_str().unwrap()), "{torn}");
            assert!(torn.contains(&format!("from byte {}", HEADER + u64::from(whole) * FRAME)), "{torn}");
        }
        append_numbers(&log, 4 + whole..6 + whole).await;
        assert_eq!(numbers(&log), (0..6 + whole).collect::<Vec<_>>(), "cut at {len}");
        drop(log);
        let (log, recovery) = open(dir.path());
        assert_eq!(recovery.torn, None);
        assert_eq!(numbers(&log), (0..6 + whole).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn every_cut_below_the_floor_is_refused() {
    let source = crashed().await;
    for (len, corrupt) in [(HEADER + 5 * FRAME + 100, true), (HEADER + 5 * FRAME, false), (HEADER, false)] {
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).pop().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        match open_with(LogConfig::new(dir.path()), Lsn(10)) {
            Err(LogError::Corrupt { path: named, offset, .. }) if corrupt => {
                assert_eq!((named, offset.0), (path, HEADER + 5 * FRAME));
            }
            Err(LogError::EndsBefore { end, wanted }) if !corrupt => {
                assert_eq!((end, wanted), (Lsn(4 + (len - HEADER) / FRAME), Lsn(10)));
            }
            other => panic!("cut at {len}: {other:?}"),
        }
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open_with(LogConfig::new(empty.path()), Lsn(1)), Err(LogError::EndsBefore { .. })));
    assert!(open_with(LogConfig::new(source.path()), Lsn(10)).is_ok());
}

fn flip(path: &Path, offset: u64, bit: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
}

/// The bytes of a frame that are checked: all but the padding.
fn checked_bytes() -> Vec<u64> {
    (0..192 + 66).chain(192 + 128..192 + 128 + 4).collect()
}

#[tokio::test]
async fn damage_below_the_durable_mark_is_refused() {
    let source = crashed().await;
    for (index, within) in checked_bytes().into_iter().enumerate() {
        let frame = (index % 5) as u64;
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).pop().unwrap();
        flip(&path, HEADER + frame * FRAME + within, (index % 8) as u8);
        match open_with(LogConfig::new(dir.path()), Lsn::ZERO) {
            Err(LogError::Corrupt { path: named, offset, .. }) => {
                assert_eq!((named, offset.0), (path, HEADER + frame * FRAME), "byte {within}");
            }
            other => panic!("frame {frame}, byte {within}: {other:?}"),
        }
    }
    // The last record's durability is stated by nothing but the caller.
    let dir = copy_segments(source.path());
    let path = segments(dir.path()).pop().unwrap();
    flip(&path, HEADER + 5 * FRAME + 200, 3);
    assert!(matches!(open_with(LogConfig::new(dir.path()), Lsn(10)), Err(LogError::Corrupt { .. })));
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.last, recovery.torn.is_some()), (Lsn(9), true));
    assert_eq!(numbers(&log), (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_idle_writer_states_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough that the writer is not idle between two of the records.
    let config = LogConfig { sync_interval: Duration::from_millis(300), ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    append_numbers(&log, 0..3).await;
    // The mark grows the segment by one header.
    while log.status().bytes < HEADER + 3 * FRAME + 192 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let copy = copy_segments(dir.path());
    drop(log);
    let path = segments(copy.path()).pop().unwrap();
    flip(&path, HEADER + 2 * FRAME + 8, 0);
    let Err(LogError::Corrupt { offset, .. }) = open_with(LogConfig::new(copy.path()), Lsn::ZERO) else {
        panic!("the last record was stated durable")
    };
    assert_eq!(offset.0, HEADER + 2 * FRAME);
}

#[tokio::test]
async fn damage_in_a_sealed_segment_is_found_by_readers() {
    let source = crashed().await;
    for within in checked_bytes() {
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).remove(0);
        flip(&path, HEADER + FRAME + within, 1);
        let (log, _) = open(dir.path());
        let mut tail = log.replay(Lsn::ZERO).unwrap();
        assert_eq!(number(&tail.try_next().unwrap().unwrap()), 0);
        for _ in 0..2 {
            let Err(LogError::Corrupt { path: named, offset, .. }) = tail.try_next() else {
                panic!("byte {within} was not noticed")
            };
            assert_eq!((&named, offset.0), (&path, HEADER + FRAME));
        }
        assert_eq!(tail.passed(), Lsn(1), "nothing is skipped");
    }
}

#[tokio::test]
async fn damaged_footers_are_made_again() {
    let source = crashed().await;
    let len = fs::metadata(&segments(source.path())[0]).unwrap().len();
    for offset in (HEADER + 4 * FRAME..len).step_by(7) {
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).remove(0);
        flip(&path, offset, 2);
        let (log, _) = open(dir.path());
        match replay(&log, Lsn::ZERO) {
            Ok(frames) => assert_eq!(frames.len(), 10),
            // The record entries are read only when the segment is.
            Err(LogError::Corrupt { path: named, .. }) => assert_eq!(named, path),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn the_chain_of_segments_is_checked() {
    let source = crashed().await;
    let dir = copy_segments(source.path());
    let paths = segments(dir.path());
    fs::remove_file(&paths[0]).unwrap();
    let (_, recovery) = open(dir.path());
    assert_eq!((recovery.first, recovery.last), (Lsn(5), Lsn(10)), "truncated");

    let dir = copy_segments(source.path());
    let (log, _) = open_history(dir.path());
    append_numbers(&log, 10..11).await;
    log.roll().await.unwrap();
    drop(log);
    let paths = segments(dir.path());
    fs::remove_file(&paths[1]).unwrap();
    let Err(LogError::Corrupt { path, reason, .. }) = open_with(LogConfig::new(dir.path()), Lsn::ZERO) else {
        panic!("a segment is missing")
    };
    assert_eq!(path, paths[0]);
    assert!(reason.contains("the next segment starts after"), "{reason}");

    for at in [0, 9, 20, 35, 100, 4090] {
        let dir = copy_segments(source.path());
        let path = segments(dir.path()).pop().unwrap();
        flip(&path, at, 0);
        match open_with(LogConfig::new(dir.path()), Lsn::ZERO) {
            Err(LogError::Corrupt { path: named, .. } | LogError::UnknownFormat { path: named, .. }) => {
                assert_eq!(named, path);
            }
            other => panic!("header byte {at}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let (mine, other) = (crashed().await, crashed().await);
    fs::copy(&segments(other.path())[1], &segments(mine.path())[1]).unwrap();
    assert!(matches!(open_with(LogConfig::new(mine.path()), Lsn::ZERO), Err(LogError::Corrupt { .. })));
    let node = NodeId([8; 16]);
    assert_ne!(node, NODE);
    let opened = tailrace_wal::Log::open(
        LogConfig::new(other.path()),
        node,
        Lsn::ZERO,
        SystemDisk::shared(),
        SystemClock::shared(),
    );
    assert!(matches!(opened, Err(LogError::ForeignNode { found: NODE, .. })));
}

#[tokio::test]
async fn stale_bytes_are_no_records() {
    // The same log written twice: equal LSNs and lengths, another salt.
    let (mine, other) = (crashed().await, crashed().await);
    let (path, from) = (segments(mine.path()).pop().unwrap(), segments(other.path()).pop().unwrap());
    let stale = fs::read(from).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&stale[(HEADER + 4 * FRAME) as usize..], HEADER + 4 * FRAME).unwrap();
    let (log, recovery) = open(mine.path());
    assert_eq!(recovery.last, Lsn(8));
    assert!(recovery.torn.is_some());
    assert_eq!(numbers(&log), (0..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_only_the_cache_may_hold_is_written_again() {
    let dir = crashed().await;
    let old = segments(dir.path());
    let salts = |paths: &[std::path::PathBuf]| -> Vec<Vec<u8>> {
        paths.iter().map(|path| fs::read(path).unwrap()[32..40].to_vec()).collect()
    };
    let before = salts(&old);
    let (log, _) = open(dir.path());
    let after = segments(dir.path());
    // Record 10 is the only one that no later frame states durable.
    assert_eq!(after.len(), 3);
    assert!(after[2].ends_with("00000000000000000010.wal"));
    assert_eq!(salts(&after)[..2], before);
    assert_eq!(numbers(&log), (0..10).collect::<Vec<_>>());
    // A crash before the old segment was cut leaves the record twice.
    drop(log);
    let again = crashed().await;
    let paths = segments(again.path());
    let whole = fs::read(&paths[1]).unwrap();
    drop(open(again.path()));
    fs::write(&paths[1], whole).unwrap();
    let (log, recovery) = open(again.path());
    assert_eq!(recovery.last, Lsn(10));
    assert_eq!(numbers(&log), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn large_records_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history_with(LogConfig { segment_bytes: 10 << 20, ..LogConfig::new(dir.path()) });
    for at in 0..6_u8 {
        append(&log, commit(HISTORY, &vec![at; 4 << 20])).await.unwrap();
    }
    let copy = copy_segments(dir.path());
    drop(log);
    let (log, recovery) = open(copy.path());
    assert_eq!(recovery.last, Lsn(6));
    let frames = replay(&log, Lsn::ZERO).unwrap();
    assert!(frames.iter().enumerate().all(|(at, frame)| frame.payload.part_bytes(0)[9] == at as u8));
}

#[tokio::test]
async fn a_torn_footer_behind_whole_records_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    append_numbers(&log, 0..10).await;
    log.close().await.unwrap();
    drop(log);
    // The trailer was written before the entries of the records.
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let entries = bytes.len() - 128 - 112 - 10 * 24;
    bytes[entries..entries + 10 * 24].fill(0);
    fs::write(&path, &bytes).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.last, Lsn(10));
    assert_eq!(numbers(&log), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_folder_of_a_log_is_durable_even_where_another_made_it() {
    let disk = SimulatedDisk::new(1);
    let dir = Path::new("/log");
    // A process that ended between the two steps of making a folder.
    disk.create_dir(dir).unwrap();
    let (log, recovery) = open_on(LogConfig::new(dir), Lsn::ZERO, disk.shared()).unwrap();
    start(&log, &recovery, HISTORY);
    append_numbers(&log, 0..3).await;
    for seed in 0..20 {
        let image = disk.image(&mut StdRng::seed_from_u64(seed));
        let (_log, recovery) = open_on(LogConfig::new(dir), Lsn::ZERO, image.shared()).unwrap();
        assert_eq!(recovery.last, Lsn(3), "seed {seed}");
    }
}
