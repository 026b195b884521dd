//! Makes the plan happen: a lane per node, one for the network, one for the switches. What falls is brought back, and
//! has to have fallen as documented: with 0 after SIGTERM, with 3 when its disk failed, otherwise not at all.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    PATIENCE, Run,
    client::{Connection, Failure},
    ledger::Ending,
    loads::insist,
    node::Node,
    plan::{NetworkFault, NodeFault, Plan, Seed, Side, Step},
    proxy::Proxy,
    report::Report,
    volume::Volume,
    writers,
};

/// Resident memory that a node may have. Its caches are set far below.
const MEMORY_BYTES_MAX: u64 = 2 << 30;

/// A primary and a replica, each on a disk of its own, with the bad network between them.
pub(crate) struct Site {
    primary: Place,
    replica: Place,
    proxy: Proxy,
    import: PathBuf,
}

/// Where a node lives.
pub(crate) struct Place {
    side: Side,
    /// The process and its disk; held while a fault is under way.
    node: tokio::sync::Mutex<(Node, Volume)>,
    address: watch::Sender<Option<SocketAddr>>,
    incarnation: AtomicU64,
    /// The last process whose disk failed; 0: none.
    disk_lost: AtomicU64,
}

impl Site {
    /// Both running.
    pub(crate) async fn start(folder: &Path, seed: Seed) -> Self {
        let import = folder.join("import");
        std::fs::create_dir(&import).unwrap();
        let common = [
            "wal.segment_bytes=4MiB",
            "wal.pin_max_bytes=64MiB",
            "engine.memtable_bytes=24MiB",
            "engine.cache_bytes=32MiB",
            "engine.flush_age=4s",
            "query.memory_bytes=256MiB",
        ];
        let mut flags: Vec<String> = common.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("files.allow=[{:?}]", import.display().to_string()));

        let volume = Volume::make(folder, "primary");
        let mut node = Node::init(folder, "primary", None, &volume.path().join("data"), &flags);
        let authority = node.authority();
        node.set("replication.primary.max_replicas=2".to_owned());
        node.start().await.unwrap();
        let proxy = Proxy::start(node.replication.unwrap(), seed).await;
        let primary = Place::new(Side::Primary, node, volume);

        let volume = Volume::make(folder, "replica");
        let mut node = Node::init(folder, "replica", Some(&authority), &volume.path().join("data"), &flags);
        node.set(format!("replication.replica.primary_addresses=[\"{}\"]", proxy.address));
        node.start().await.unwrap();
        let replica = Place::new(Side::Replica, node, volume);
        Self { primary, replica, proxy, import }
    }

    pub(crate) fn place(&self, side: Side) -> &Place {
        match side {
            Side::Primary => &self.primary,
            Side::Replica => &self.replica,
        }
    }

    /// The folder from which the primary may COPY.
    pub(crate) fn import(&self) -> &Path {
        &self.import
    }

    /// The end of both logs.
    pub(crate) fn last_words(&self) -> String {
        let words = |place: &Place| match place.node.try_lock() {
            Ok(node) => format!("--- {} ({}) ---\n{}", place.side.name(), node.0.log_path().display(), node.0.words()),
            Err(_) => String::new(),
        };
        format!("{}{}", words(&self.primary), words(&self.replica))
    }

    /// Notes both processes' memory, which must be bounded, and what the network did.
    pub(crate) fn note_end(&self, report: &Report) {
        for place in [&self.primary, &self.replica] {
            if let Ok(node) = place.node.try_lock() {
                place.check_memory(report, &node.0);
            }
        }
        let (forwarded, hit) = self.proxy.counts();
        report.note(format!("datagrams: {forwarded}, {hit} of them hit by a fault"));
    }
}

impl Place {
    fn new(side: Side, node: Node, volume: Volume) -> Self {
        let address = watch::Sender::new(node.pgwire);
        Self {
            side,
            node: tokio::sync::Mutex::new((node, volume)),
            address,
            incarnation: AtomicU64::new(1),
            disk_lost: AtomicU64::new(0),
        }
    }

    /// Where clients connect, while the node is up.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        *self.address.borrow()
    }

    /// Which process of the node runs, counted from 1. Moves before a new one starts.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Whether the disk failed beneath one of its processes, the last one where that happened.
    pub(crate) fn has_lost_disk(&self, incarnation: u64) -> bool {
        self.disk_lost.load(Ordering::Acquire) == incarnation
    }

    fn check_memory(&self, report: &Report, node: &Node) {
        let Some((now, most)) = node.memory() else { return };
        let name = self.side.name();
        report.highest(&format!("memory of the {name} (MiB)"), most >> 20);
        if now > MEMORY_BYTES_MAX {
            report.violation(format!("the {name} has {} MiB in memory", now >> 20));
        }
    }

    /// Notes how the present process ends.
    fn down(&self, run: &Run, ending: Ending) {
        self.address.send_replace(None);
        if self.side == Side::Primary {
            run.ledger.endings.lock().unwrap().insert(self.incarnation(), ending);
        }
    }

    /// Starts it, if it does not run; nothing hinders it now, so it has to start.
    async fn up(&self, run: &Run, node: &mut Node, after: &str) {
        if node.runs() {
            return;
        }
        let began = Instant::now();
        self.incarnation.fetch_add(1, Ordering::AcqRel);
        match node.start().await {
            Ok(()) => {
                run.report.span(&format!("{} listens again after {after}", self.side.name()), began.elapsed());
                self.address.send_replace(node.pgwire);
            }
            Err(error) => {
                let (name, code, words) = (self.side.name(), error.code, error.words);
                run.report.violation(format!("the {name} does not start after {after}: {code:?}\n{words}"));
            }
        }
    }
}

/// Everything that is planned. Both nodes are up afterwards, and the network is whole.
pub(crate) async fn happen(run: &Arc<Run>, plan: Plan) {
    // Bringing back takes longer than planned: what does not fit any more is left out.
    let end = Instant::now() + plan.length;
    let lanes = [
        tokio::spawn(node_lane(run.clone(), Side::Primary, plan.primary, end)),
        tokio::spawn(node_lane(run.clone(), Side::Replica, plan.replica, end)),
        tokio::spawn(network_lane(run.clone(), plan.network, end)),
        tokio::spawn(switch_lane(run.clone(), plan.switches, end)),
    ];
    for lane in lanes {
        lane.await.unwrap();
    }
}

/// SIGTERM and a start for both, at rest.
pub(crate) async fn restart_both(run: &Arc<Run>) {
    for side in [Side::Replica, Side::Primary] {
        let place = run.site.place(side);
        let (node, volume) = &mut *place.node.lock().await;
        perform(run, place, node, volume, NodeFault::Terminate, Duration::ZERO).await;
    }
}

async fn node_lane(run: Arc<Run>, side: Side, steps: Vec<Step<NodeFault>>, end: Instant) {
    let place = run.site.place(side);
    for step in steps {
        if Instant::now() + step.after > end {
            return;
        }
        let (node, volume) = &mut *place.node.lock().await;
        if let Some(status) = node.end(step.after).await {
            ended_unasked(&run, place, node, status);
            place.up(&run, node, "an end that nobody asked for").await;
        }
        if !node.runs() {
            // Why was said when it did not start.
            return;
        }
        place.check_memory(&run.report, node);
        perform(&run, place, node, volume, step.fault, step.lasts).await;
    }
}

async fn network_lane(run: Arc<Run>, steps: Vec<Step<NetworkFault>>, end: Instant) {
    for step in steps {
        if Instant::now() + step.after > end {
            return;
        }
        tokio::time::sleep(step.after).await;
        let kind = format!("{:?}", step.fault);
        run.report.fault(&format!("network: {}", kind.split('(').next().unwrap_or_default()));
        run.site.proxy.set(Some(step.fault));
        tokio::time::sleep(step.lasts).await;
        run.site.proxy.set(None);
    }
}

async fn switch_lane(run: Arc<Run>, steps: Vec<Step<Side>>, end: Instant) {
    for step in steps {
        if Instant::now() + step.after > end {
            return;
        }
        tokio::time::sleep(step.after).await;
        run.report.fault(&format!("replication stopped on the {}", step.fault.name()));
        insist(&run, step.fault, "CALL stop_cluster_replication()", "").await;
        tokio::time::sleep(step.lasts).await;
        insist(&run, step.fault, "CALL start_cluster_replication()", "").await;
    }
}

async fn perform(run: &Run, place: &Place, node: &mut Node, volume: &mut Volume, fault: NodeFault, lasts: Duration) {
    let name = place.side.name();
    let needs_volume = matches!(fault, NodeFault::Full { .. } | NodeFault::ReadOnly | NodeFault::PowerLoss);
    if needs_volume && !volume.is_mounted {
        run.report.fault(&format!("{name}: left out for want of a disk"));
        return;
    }
    println!("{:8.3} {name}: {fault:?}", run.ledger.now().as_secs_f64());
    match fault {
        NodeFault::Kill => {
            run.report.fault(&format!("{name}: kill -9"));
            place.down(run, Ending::Killed);
            node.kill();
            tokio::time::sleep(lasts).await;
            place.up(run, node, "kill -9").await;
        }
        NodeFault::Terminate => {
            run.report.fault(&format!("{name}: SIGTERM"));
            terminate(run, place, node).await;
            tokio::time::sleep(lasts).await;
            place.up(run, node, "SIGTERM").await;
        }
        NodeFault::Pause => {
            run.report.fault(&format!("{name}: SIGSTOP"));
            node.signal("STOP");
            tokio::time::sleep(lasts).await;
            node.signal("CONT");
        }
        NodeFault::Full { spare, kill } => {
            run.report.fault(&format!("{name}: disk full but for {} KiB", spare >> 10));
            volume.fill(spare).unwrap();
            full(run, place, node, kill, lasts).await;
            volume.unfill();
            place.up(run, node, "a full disk").await;
            if place.side == Side::Primary
                && let Some(span) = writers::wait_for_writes(run).await
            {
                run.report.span("primary takes writes again after a full disk", span);
            }
        }
        NodeFault::ReadOnly => {
            run.report.fault(&format!("{name}: disk turns read-only"));
            // Beneath a sync that is under way, the kernel may call lost data synced: not in the middle of one.
            node.freeze().await;
            place.disk_lost.store(place.incarnation(), Ordering::Release);
            volume.turn_read_only().unwrap();
            node.signal("CONT");
            lose_disk(run, place, node, lasts, "ead-only").await;
            refuses_to_start(run, place, node, "ead-only").await;
            volume.remount().unwrap();
            place.up(run, node, "a read-only disk").await;
        }
        NodeFault::PowerLoss => {
            run.report.fault(&format!("{name}: power loss"));
            node.freeze().await;
            place.disk_lost.store(place.incarnation(), Ordering::Release);
            volume.lose_power().unwrap();
            node.signal("CONT");
            lose_disk(run, place, node, lasts, "nput/output error").await;
            volume.remount().unwrap();
            place.up(run, node, "power loss").await;
        }
    }
}

async fn terminate(run: &Run, place: &Place, node: &mut Node) {
    let name = place.side.name();
    place.down(run, Ending::Terminated);
    node.signal("TERM");
    match node.end(PATIENCE).await {
        Some(status) if status.code() == Some(0) => {}
        Some(status) => run.report.violation(format!("the {name}, asked to end: {status}\n{}", node.words())),
        None => {
            run.report.violation(format!("the {name} does not end after SIGTERM\n{}", node.words()));
            node.kill();
        }
    }
}

fn ended_unasked(run: &Run, place: &Place, node: &Node, status: ExitStatus) {
    let name = place.side.name();
    run.report.violation(format!("the {name} ended by itself: {status}\n{}", node.words()));
    place.down(run, Ending::DiskLost);
}

/// Its disk takes no writes: a node that writes ends by itself, with 3, and says why. One that does not is killed.
async fn lose_disk(run: &Run, place: &Place, node: &mut Node, lasts: Duration, why: &str) {
    let name = place.side.name();
    let status = node.end(lasts).await;
    place.down(run, Ending::DiskLost);
    match status {
        Some(status) => {
            run.report.fault(&format!("{name}: its disk gone, ended by itself ({status})"));
            let words = node.words();
            if status.code() != Some(3) || !words.contains(why) || !words.contains("restart") {
                run.report.violation(format!("the {name}, its disk gone, ended with {status} and said:\n{words}"));
            }
        }
        None => {
            run.report.fault(&format!("{name}: its disk gone, killed"));
            node.kill();
        }
    }
}

/// A start on such a disk fails, and says why.
async fn refuses_to_start(run: &Run, place: &Place, node: &mut Node, why: &str) {
    let name = place.side.name();
    place.incarnation.fetch_add(1, Ordering::AcqRel);
    match node.start().await {
        Ok(()) => {
            run.report.violation(format!("the {name} starts on a disk that is {why}\n{}", node.words()));
            node.kill();
        }
        Err(error) => {
            run.report.fault(&format!("{name}: start refused, code {:?}", error.code));
            if error.code != Some(1) || !error.words.contains(why) {
                run.report.violation(format!("the {name}, started on a disk that is {why}: {error:?}"));
            }
        }
    }
}

/// No space: writes are refused by name, reads go on.
async fn full(run: &Run, place: &Place, node: &mut Node, kill: bool, lasts: Duration) {
    let name = place.side.name();
    let mut ended = node.end(lasts).await;
    if ended.is_none()
        && let Some(connection) = Connection::try_open(run, place.side).await
    {
        let read = connection.rows(run, "SELECT count(*) FROM chaos.events").await;
        let word = read.as_ref().err().map_or("done".to_owned(), Failure::outcome);
        run.report.operation(&format!("read on the {name} while its disk is full"), &word);
        if let Err(failure) = read
            && place.side == Side::Primary
        {
            run.report.violation(format!("the primary, its disk full, does not answer a query: {failure:?}"));
        }
        ended = node.ended();
    }
    if let Some(status) = ended {
        run.report.violation(format!("the {name} ended by itself on a full disk: {status}\n{}", node.words()));
        place.down(run, Ending::DiskLost);
    } else if kill {
        run.report.fault(&format!("{name}: kill -9 on a full disk"));
        place.down(run, Ending::Killed);
        node.kill();
        place.incarnation.fetch_add(1, Ordering::AcqRel);
        match node.start().await {
            Ok(()) => {
                run.report.fault(&format!("{name}: started on a full disk"));
                place.address.send_replace(node.pgwire);
            }
            Err(error) => {
                run.report.fault(&format!("{name}: start refused on a full disk, code {:?}", error.code));
                if error.code != Some(1) || !error.words.contains("pace") {
                    run.report.violation(format!("the {name}, started on a full disk: {error:?}"));
                }
            }
        }
    }
}
