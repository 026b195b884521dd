//! A copy that is limited to some tables: what is chosen is there as on the primary, what is not is known and says so, and
//! the log has everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_engine::{Applier, CommitOptions, Engine, TableChoice, TableId};
use tailrace_wal::{Frame, Seq};

use crate::{changes, replica::*, support::*};

/// `market` with tables `bars` and `risk`.
async fn two_tables(engine: &Arc<Engine>) {
    market(engine).await;
    engine.create_table("market", bars("risk")).await.unwrap();
}

/// One transaction with rows of both.
async fn insert_both(engine: &Arc<Engine>, ids: std::ops::Range<i64>) {
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(ids.clone(), 3)).await.unwrap();
    transaction.append("risk", rows(ids.clone(), 4)).await.unwrap();
    transaction.append("bars", rows(ids.start + 500..ids.end + 500, 3)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
}

async fn follow(engine: &Arc<Engine>, primary: &Engine, choice: TableChoice) -> Arc<Applier> {
    let applier = engine.follow(market_id(primary), "market", "site-a").await.unwrap();
    engine.choose_tables(applier.history(), choice).await.unwrap();
    applier
}

/// Whether a table is left out, and how many rows it shows.
fn left_out(engine: &Engine, table: &str) -> (bool, u64) {
    let version = engine.version();
    let database = version.database("market").unwrap();
    let table = database.table(table).unwrap();
    assert_eq!(table.is_left_out(), database.why_left_out(table).is_some());
    (table.is_left_out(), table.rows())
}

async fn same(a: &Arc<Engine>, b: &Arc<Engine>, table: &str) {
    let rows = contents(b, &b.version(), table).await;
    assert!(!rows.is_empty(), "{table}");
    assert!(contents(a, &a.version(), table).await == rows, "rows of {table} differ");
}

/// What a kill leaves, opened.
async fn killed(dir: &Path) -> (tempfile::TempDir, Arc<Engine>) {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(dir, copy.path());
    let engine = open(copy.path()).await;
    (copy, engine)
}

/// Datafiles of a table, once those that nothing names are removed.
async fn wait_for_files(dir: &Path, table: &str, any: bool) {
    let folder = dir.join("store/market").join(table);
    for _ in 0..1000 {
        let mut folders = vec![folder.clone()];
        let mut found = false;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                found |= path.extension().is_some_and(|extension| extension == "parquet");
                folders.extend(path.is_dir().then_some(path));
            }
        }
        if found == any {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("datafiles of {table}: wanted {any}");
}

/// Fetches what is wanted alone; says of which tables that was.
async fn repair(from: &Arc<Engine>, to: &Arc<Engine>) -> BTreeSet<String> {
    let source = from.repair_source(market_id(from)).await.unwrap();
    let tables = source.manifest.tables.iter();
    let named: Vec<&str> = tables.flat_map(|held| held.datafiles.iter().map(|_| held.table.name.as_str())).collect();
    let mut install = to.repair_install("site-a", source.manifest.clone()).await.unwrap();
    let wanted: Vec<(usize, u64)> = install.wanted().collect();
    for (index, bytes) in &wanted {
        install.write(*index, source.read(*index, 0, *bytes).await.unwrap()).await.unwrap();
    }
    if let Some(unwanted) = (0..named.len()).find(|index| wanted.iter().all(|(wanted, _)| wanted != index)) {
        install.write(unwanted, source.read(unwanted, 0, 10).await.unwrap()).await.unwrap_err();
    }
    install.install().await.unwrap();
    wanted.into_iter().map(|(index, _)| named[index].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_tables_have_their_rows_and_the_log_has_everything() {
    let (dir_a, dir_b, dir_c) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, mut b) = (open_with(small).await.0, open(dir_b.path()).await);
    two_tables(&a).await;
    let id = market_id(&a);
    insert_both(&a, 0..100).await;
    insert(&a, "risk", rows(200..300, 3)).await;
    let frames = records(&a, id, Seq(0)).await;
    assert!(frames.len() > 6, "nothing was fragmented");
    let applier = follow(&b, &a, TableChoice::only(["bars"])).await;
    catch_up(&a, &applier).await;
    applier.durable().await.unwrap();
    same(&a, &b, "bars").await;
    assert_eq!(left_out(&b, "risk"), (true, 0));
    assert_eq!(a.tasks(id, Seq(0)), b.tasks(id, Seq(0)));
    let verbatim = |frames: Vec<Frame>| frames.into_iter().map(|frame| (frame.header, frame.payload.hash)).collect();
    let original: Vec<_> = verbatim(records(&a, id, Seq(0)).await);
    assert_eq!(original, verbatim(records(&b, id, Seq(0)).await));
    // Its feed gives the rows that the table lacks.
    let feeds = [changes::all(&a, "risk").await, changes::all(&b, "risk").await];
    assert!(feeds[0] == feeds[1]);
    assert_eq!(feeds[0].len(), 200);

    // A copy of this copy is whole; a repair from it would not be.
    let c = open(dir_c.path()).await;
    let second = c.follow(id, "market", "site-a").await.unwrap();
    catch_up(&b, &second).await;
    same(&a, &c, "bars").await;
    same(&a, &c, "risk").await;
    let refused = b.repair_source(id).await.unwrap_err().to_string();
    assert!(refused.contains("left out: risk") && refused.contains("site-a"), "{refused}");

    // A crash before and after a flush, an orderly start.
    for flushes in [false, true, true] {
        if flushes {
            b.flush().await.unwrap();
        }
        let (_copy, again) = killed(dir_b.path()).await;
        same(&a, &again, "bars").await;
        assert_eq!(left_out(&again, "risk"), (true, 0));
        assert_eq!(again.version().database("market").unwrap().choice(), &TableChoice::only(["bars"]));
    }
    wait_for_files(dir_b.path(), "bars", true).await;
    wait_for_files(dir_b.path(), "risk", false).await;
    b.shutdown().await.unwrap();
    drop((applier, b));
    b = open(dir_b.path()).await;

    // DDL: names decide, also about those that come back.
    let applier = follow(&b, &a, TableChoice::only(["bars"])).await;
    for name in ["bars", "risk"] {
        a.drop_table("market", name).await.unwrap();
        a.create_table("market", bars(name)).await.unwrap();
    }
    a.create_table("market", bars("more")).await.unwrap();
    insert_both(&a, 900..950).await;
    insert(&a, "more", rows(0..10, 1)).await;
    catch_up(&a, &applier).await;
    for again in [false, true] {
        same(&a, &b, "bars").await;
        assert_eq!((left_out(&b, "risk"), left_out(&b, "more")), ((true, 0), (true, 0)));
        if !again {
            b.flush().await.unwrap();
        }
        let (_copy, again) = killed(dir_b.path()).await;
        same(&a, &again, "bars").await;
        assert_eq!((left_out(&again, "risk"), left_out(&again, "more")), ((true, 0), (true, 0)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_choice_drops_rows_or_waits_for_a_repair() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, mut b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    two_tables(&a).await;
    a.create_table("market", bars("more")).await.unwrap();
    let id = market_id(&a);
    insert_both(&a, 0..100).await;
    insert(&a, "more", rows(0..10, 1)).await;
    let mut applier = follow(&b, &a, TableChoice::all()).await;
    catch_up(&a, &applier).await;
    b.flush().await.unwrap();
    insert_both(&a, 100..200).await;
    catch_up(&a, &applier).await;
    // Prepared before the choice, committed after it.
    insert_both(&a, 200..300).await;
    let frames = records(&a, id, applier.position().0.seq).await;
    let prepared = applier.prepare(frames[0].header, frames[0].payload.clone()).unwrap().unwrap();
    let before = tempfile::tempdir().unwrap();
    copy_folder(dir_b.path(), before.path());
    let reader = b.version();
    b.choose_tables(id, TableChoice::only(["bars"])).await.unwrap();
    assert_eq!(left_out(&b, "risk"), (true, 0));
    applier.commit(vec![prepared]).await.unwrap();
    same(&a, &b, "bars").await;
    assert_eq!((left_out(&b, "risk"), left_out(&b, "more")), ((true, 0), (true, 0)));
    // Who was reading reads on; then the files go.
    assert_eq!(contents(&b, &reader, "risk").await.len(), 200);
    drop(reader);
    wait_for_files(dir_b.path(), "risk", false).await;
    wait_for_files(dir_b.path(), "more", false).await;

    // A crash after the choice was written and before anything came of it.
    let log = dir_b.path().join("wal");
    for entry in std::fs::read_dir(&log).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), before.path().join("wal").join(entry.file_name())).unwrap();
    }
    let crashed = open(before.path()).await;
    same(&a, &crashed, "bars").await;
    assert_eq!((left_out(&crashed, "risk"), left_out(&crashed, "more")), ((true, 0), (true, 0)));
    crashed.flush().await.unwrap();
    wait_for_files(before.path(), "risk", false).await;

    // Chosen again, it is waited for: what came meanwhile is nowhere but in the log.
    b.choose_tables(id, TableChoice::only(["bars", "risk", "none"])).await.unwrap();
    insert_both(&a, 300..400).await;
    for end in ["feed", "kill", "start"] {
        catch_up(&a, &applier).await;
        same(&a, &b, "bars").await;
        let version = b.version();
        let database = version.database("market").unwrap();
        assert_eq!(database.awaited_tables(), ["risk"], "{end}");
        let why = |name| database.why_left_out(database.table(name).unwrap()).unwrap();
        assert_eq!(why("risk").remedy, "CALL repair_database('market')");
        assert!(why("more").remedy.contains("add \"market.more\""), "{:?}", why("more"));
        if end == "feed" {
            drop(applier);
            b.shutdown().await.unwrap();
            drop((version, b));
            b = open(dir_b.path()).await;
            applier = b.follow(id, "market", "site-a").await.unwrap();
        }
    }
    // A table that begins now is there from its first row on.
    a.create_table("market", bars("none")).await.unwrap();
    insert(&a, "none", rows(0..20, 2)).await;
    catch_up(&a, &applier).await;
    same(&a, &b, "none").await;

    // What is here already stays.
    assert_eq!(repair(&a, &b).await, ["risk".to_owned()].into());
    for end in ["installed", "killed", "flushed"] {
        let opened = if end == "installed" { None } else { Some(killed(dir_b.path()).await) };
        let now = opened.as_ref().map_or(&b, |(_, engine)| engine);
        for table in ["bars", "risk", "none"] {
            same(&a, now, table).await;
        }
        assert_eq!(left_out(now, "more"), (true, 0));
        assert!(now.version().database("market").unwrap().awaited_tables().is_empty());
        if end == "killed" {
            b.flush().await.unwrap();
        }
    }
    insert_both(&a, 400..500).await;
    catch_up(&a, &applier).await;
    same(&a, &b, "risk").await;

    // What is written here is never limited, and a repair that was begun for other tables is not installed.
    let refused = a.choose_tables(id, TableChoice::only(["bars"])).await.unwrap_err().to_string();
    assert!(refused.contains("written here"), "{refused}");
    let source = a.repair_source(id).await.unwrap();
    let mut install = b.repair_install("site-a", source.manifest.clone()).await.unwrap();
    for (index, bytes) in install.wanted().collect::<Vec<_>>() {
        install.write(index, source.read(index, 0, bytes).await.unwrap()).await.unwrap();
    }
    b.choose_tables(id, TableChoice::all()).await.unwrap();
    let refused = install.install().await.unwrap_err().to_string();
    assert!(refused.contains("other tables were chosen"), "{refused}");
    assert_eq!(b.version().database("market").unwrap().awaited_tables(), ["more"]);
    repair(&a, &b).await;
    same(&a, &b, "more").await;
    assert_eq!(b.version().database("market").unwrap().choice(), &TableChoice::all());
    b.repair_source(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_task_is_applied_late_as_far_as_its_tables_are_chosen() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    two_tables(&a).await;
    let applier = follow(&b, &a, TableChoice::only(["bars"])).await;
    catch_up(&a, &applier).await;
    insert_both(&a, 0..100).await;
    let frame = records(&a, applier.history(), Seq(3)).await.remove(0);
    applier.skip(frame.header, frame.payload, "no".into()).await.unwrap().unwrap();
    assert!(b.version().database("market").unwrap().divergence().is_some());
    insert_both(&a, 100..200).await;
    catch_up(&a, &applier).await;
    b.retry_dead_letter("market", Seq(4)).await.unwrap();
    same(&a, &b, "bars").await;
    assert_eq!(left_out(&b, "risk"), (true, 0));
    assert_eq!(b.version().database("market").unwrap().divergence(), None);
}

/// What a limited copy must be, whatever happens to it: every table that is not left out is equal to the primary's, and
/// left out are those that were not chosen at some time since they began or were repaired.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_no_table_lacks_rows_in_silence() {
    for seed in 0..6 {
        println!("seed {seed}: cargo test -p tailrace-engine --test it whatever_happens_no_table");
        let mut random = StdRng::seed_from_u64(seed);
        let dir_a = tempfile::tempdir().unwrap();
        let mut dir_b = tempfile::tempdir().unwrap();
        let mut small = config(dir_a.path());
        small.fragment_bytes = 1500;
        let (a, mut b) = (open_with(small).await.0, open(dir_b.path()).await);
        a.create_database("market").await.unwrap();
        let mut choice = TableChoice::all();
        let mut applier = follow(&b, &a, choice.clone()).await;
        let names = ["bars", "risk", "more"];
        // Known to the copy; those that it may lack.
        let (mut known, mut lacks): (BTreeSet<TableId>, BTreeSet<TableId>) = Default::default();
        let tables = |engine: &Engine| -> BTreeMap<TableId, String> {
            let version = engine.version();
            let database = version.database("market").unwrap();
            database.tables().map(|table| (table.table.id, table.table.name.clone())).collect()
        };
        for step in 0..60 {
            let name = names[random.random_range(0..3)];
            let there = tables(&a).into_values().any(|there| there == name);
            match random.random_range(0..14) {
                0..=5 if there => {
                    let ids = step * 100..step * 100 + random.random_range(1..60);
                    let mut transaction = a.begin("market").unwrap();
                    for table in tables(&a).values().filter(|table| *table == name || random.random_bool(0.5)) {
                        transaction.append(table, rows(ids.clone(), 3)).await.unwrap();
                    }
                    transaction.commit(CommitOptions::default()).await.unwrap();
                }
                0..=5 => drop(a.create_table("market", bars(name)).await.unwrap()),
                6 if there => drop(a.drop_table("market", name).await.unwrap()),
                7 => drop(b.flush().await.unwrap()),
                8 => {
                    b.shutdown().await.unwrap();
                    drop((applier, b));
                    b = open(dir_b.path()).await;
                    applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
                }
                9 => {
                    let (copy, again) = killed(dir_b.path()).await;
                    drop((applier, b));
                    (dir_b, b) = (copy, again);
                    applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
                }
                10 | 11 => {
                    choice = match random.random_range(0..4) {
                        0 => TableChoice::all(),
                        _ => TableChoice::only(names.into_iter().filter(|_| random.random_bool(0.5))),
                    };
                    b.choose_tables(market_id(&a), choice.clone()).await.unwrap();
                    lacks.extend(tables(&b).into_iter().filter(|(_, name)| !choice.selects(name)).map(|(id, _)| id));
                }
                12 => {
                    repair(&a, &b).await;
                    known = tables(&b).into_keys().collect();
                    lacks =
                        tables(&b).into_iter().filter(|(_, name)| !choice.selects(name)).map(|(id, _)| id).collect();
                }
                _ => {
                    catch_up(&a, &applier).await;
                }
            }
            for (id, name) in tables(&b) {
                if known.insert(id) && !choice.selects(&name) {
                    lacks.insert(id);
                }
            }
            let (left, right) = (a.version(), b.version());
            let (one, two) = (left.database("market").unwrap(), right.database("market").unwrap());
            assert_eq!(two.choice(), &choice, "step {step}");
            for table in two.tables() {
                assert_eq!(table.is_left_out(), lacks.contains(&table.table.id), "step {step}: {}", table.table.name);
                let rows = table_contents(&b, table).await;
                if table.is_left_out() {
                    assert!(rows.is_empty());
                } else if one.position == two.position {
                    let wanted = table_contents(&a, one.table_by_id(table.table.id).unwrap()).await;
                    assert!(rows == wanted, "step {step}: rows of {} differ", table.table.name);
                }
            }
        }
    }
}
