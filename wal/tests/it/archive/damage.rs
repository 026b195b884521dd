//! Damaged objects are refused by name and offset; a damaged segment of the log is not archived.

use std::{os::unix::fs::FileExt as _, sync::Arc};

use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, path::Path as ObjectPath};
use tailrace_wal::{ArchiveEntry, LogError, Lsn};

use super::{archive, archiver, drain, log_with, store::FaultyStore};
use crate::support::segments;

async fn objects(store: &FaultyStore, folder: &str) -> Vec<ObjectPath> {
    let listed: Vec<_> = store.objects.list(Some(&ObjectPath::from(folder))).try_collect().await.unwrap();
    listed.into_iter().map(|meta| meta.location).collect()
}

async fn read_all(store: &FaultyStore) -> Result<usize, LogError> {
    let archive = archive(store);
    archive.refresh().await?;
    drain(archive.replay(None, Lsn::ZERO)).await.map(|frames| frames.len())
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 1).await;
    let store = FaultyStore::default();
    archiver(&log, &store).catch_up().await.unwrap();
    assert_eq!(read_all(&store).await.unwrap(), 10);
    for folder in ["node/segments", "node/manifest"] {
        let names = objects(&store, folder).await;
        let [name] = &names[..] else { panic!("{names:?}") };
        let bytes = store.objects.get(name).await.unwrap().bytes().await.unwrap();
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            store.objects.put(name, flipped.into()).await.unwrap();
            let error = read_all(&store).await.expect_err("a flipped bit");
            assert!(error.to_string().contains(name.as_ref()), "bit {at} of {name}: {error}");
        }
        for len in (0..bytes.len()).step_by(3) {
            store.objects.put(name, bytes.slice(..len).into()).await.unwrap();
            let error = read_all(&store).await.expect_err("a cut object");
            assert!(error.to_string().contains(name.as_ref()), "{len} bytes of {name}: {error}");
        }
        store.objects.put(name, bytes.into()).await.unwrap();
        assert_eq!(read_all(&store).await.unwrap(), 10);
    }
}

#[tokio::test]
async fn a_damaged_block_is_named_by_its_offset_and_a_missing_object_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 1).await;
    let store = FaultyStore::default();
    archiver(&log, &store).catch_up().await.unwrap();
    let name = objects(&store, "node/segments").await.remove(0);
    let bytes = store.objects.get(&name).await.unwrap().bytes().await.unwrap();
    let mut damaged = bytes.to_vec();
    damaged[200] ^= 1;
    store.objects.put(&name, damaged.into()).await.unwrap();
    let archive = archive(&store);
    archive.refresh().await.unwrap();
    let ArchiveEntry::Segment(segment) = &*archive.entries()[0] else { panic!("a gap") };
    for error in [read_all(&store).await.unwrap_err(), archive.verify(segment).await.unwrap_err()] {
        let LogError::Corrupt { path, offset, reason } = &error else { panic!("{error}") };
        assert_eq!((path.to_str(), offset.0), (Some(name.as_ref()), 128), "{reason}");
    }
    store.objects.delete(&name).await.unwrap();
    let error = read_all(&store).await.unwrap_err();
    assert!(error.to_string().contains(name.as_ref()) && error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn what_is_damaged_in_the_log_is_not_archived() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 2).await;
    let store = FaultyStore::default();
    let damaged = segments(dir.path())[1].clone();
    let file = std::fs::OpenOptions::new().write(true).open(&damaged).unwrap();
    // In the payload of its first record.
    file.write_all_at(&[0xff; 8], 4096 + 200).unwrap();
    let archiver = Arc::new(archiver(&log, &store));
    let error = archiver.catch_up().await.unwrap_err();
    let LogError::Corrupt { path, .. } = &error else { panic!("{error}") };
    assert_eq!(*path, damaged);
    assert_eq!(archiver.archive().archived(), Lsn(10));
    assert_eq!(objects(&store, "node/segments").await.len(), 1);
}
