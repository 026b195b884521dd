use std::path::Path;

use super::*;
use crate::{Disk, FileOffset};

fn write(file: &dyn crate::DiskFile, bytes: &[u8], offset: u64) {
    file.write_all_vectored_at(&mut [std::io::IoSlice::new(bytes)], offset).unwrap();
}

fn random(seed: u64) -> rand::rngs::StdRng {
    rand::SeedableRng::seed_from_u64(seed)
}

#[test]
fn synced_bytes_and_names_survive_and_others_may_not() {
    let path = Path::new("d/f");
    let (mut lost_file, mut lost_bytes, mut kept_bytes, mut torn, mut older) = (0, 0, 0, 0, 0);
    for seed in 0..200 {
        let disk = SimulatedDisk::new(seed);
        disk.create_dir_all(Path::new("d")).unwrap();
        let file = disk.create(path).unwrap();
        write(&*file, &[1; 1024], 0);
        file.sync_all().unwrap();
        let image = disk.image(&mut random(seed));
        lost_file += u32::from(image.read_all(path).is_err());
        disk.sync_dir(Path::new("d")).unwrap();
        write(&*file, &[2; 1024], 0);
        write(&*file, &[3; 1024], 0);
        let image = disk.image(&mut random(seed));
        let bytes = image.read_all(path).unwrap();
        assert_eq!(bytes.len(), 1024);
        assert!(bytes[..512].iter().all(|byte| *byte == bytes[0]), "a block is written whole or not at all");
        assert!(bytes[512..].iter().all(|byte| *byte == bytes[512]));
        lost_bytes += u32::from(bytes == [1; 1024]);
        kept_bytes += u32::from(bytes == [3; 1024]);
        torn += u32::from(bytes[0] != bytes[512]);
        older += u32::from(bytes.contains(&2));
        file.sync_data().unwrap();
        assert!(!disk.is_dirty());
        disk.crash(&mut random(seed));
        assert_eq!(disk.read_all(path).unwrap(), [3; 1024]);
        assert!(file.sync_data().is_err(), "opened before the crash");
    }
    assert!([lost_file, lost_bytes, kept_bytes, torn, older].iter().all(|count| *count > 5));
}

#[test]
fn a_failed_sync_drops_pages_that_stay_visible() {
    let path = Path::new("f");
    let mut lost = 0;
    for seed in 0..50 {
        let disk = SimulatedDisk::new(seed);
        let file = disk.create(path).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        write(&*file, &[1; 4096], 0);
        disk.fail_call(0, Failure::DropsPages);
        assert!(file.sync_data().is_err());
        assert_eq!(disk.fired(), Some(CallKind::SyncData));
        file.sync_data().unwrap();
        assert_eq!(disk.read_all(path).unwrap(), [1; 4096], "the cache shows them");
        let mut image = disk.image(&mut random(seed));
        let after_crash = image.read_all(path).unwrap();
        image = disk.fork();
        image.evict();
        assert_eq!(image.read_all(path).unwrap(), after_crash, "and so does the disk, once it is asked");
        lost += u32::from(after_crash != [1; 4096]);
    }
    assert!(lost > 20);
}

#[test]
fn space_runs_out_and_comes_back() {
    let disk = SimulatedDisk::new(1);
    disk.set_capacity(Some(1000));
    let file = disk.create(Path::new("f")).unwrap();
    write(&*file, &[1; 900], 0);
    let full = file.write_all_vectored_at(&mut [std::io::IoSlice::new(&[2; 200])], 900).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 1000, "what fitted was written");
    write(&*file, &[3; 1000], 0);
    file.set_len(900).unwrap();
    write(&*file, &[4; 100], 900);
    disk.set_capacity(None);
    write(&*file, &[2; 200], 1000);
    assert_eq!(disk.counts().of(FaultClass::Full), 1);
}

#[test]
fn blocks_of_removed_files_turn_up_again() {
    let mut seen = 0;
    for seed in 0..100 {
        let disk = SimulatedDisk::new(seed);
        let file = disk.create(Path::new("old")).unwrap();
        write(&*file, &[7; 2048], 0);
        file.sync_all().unwrap();
        disk.remove(Path::new("old")).unwrap();
        let file = disk.create(Path::new("new")).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        write(&*file, &[8; 2048], 0);
        let image = disk.image(&mut random(seed));
        seen += u32::from(image.read_all(Path::new("new")).unwrap().contains(&7));
        file.sync_data().unwrap();
        assert_eq!(disk.image(&mut random(seed)).read_all(Path::new("new")).unwrap(), [8; 2048]);
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let disk = SimulatedDisk::new(seed);
        disk.keep_trace();
        let file = disk.create(Path::new("f")).unwrap();
        disk.fail_call(2, Failure::Broken);
        for at in 0..5 {
            let _ = file.write_all_vectored_at(&mut [std::io::IoSlice::new(&[at as u8; 700])], at * 700);
        }
        disk.crash(&mut random(seed));
        disk.flip_any(&mut random(seed), |_| true);
        let files = disk.files().into_iter().map(|(path, _)| disk.read_all(&path).unwrap()).collect::<Vec<_>>();
        (disk.trace(), disk.trace_hash(), files)
    };
    assert_eq!(run(3), run(3));
    assert_eq!(run(3).0[1].offset, FileOffset(0));
    assert!((0..20).any(|seed| run(seed).2 != run(3).2));
}
