//! A repair, fetched: manifest, then datafiles in pieces, then one edit that puts the database in place.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tailrace_engine::{Operation, RepairInstall, RepairManifest, Right};
use tailrace_wal::Position;
use tokio::sync::oneshot;

use super::{
    board::special,
    database::{Database, Phase},
    link::{Command, Event},
};
use crate::wire::FeedNumber;

/// Length of a piece.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces asked for and not yet written.
const PIECES_AHEAD: usize = 8;

/// Part of a datafile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Piece {
    datafile: u32,
    offset: u64,
    length: u32,
}

impl Database {
    /// Asks for the repair that brings tables which were chosen since. Not of a database that has ended at the primary: its
    /// feed leads to that end.
    pub(super) fn bring_awaited(&mut self) {
        if self.offered && self.phase == Phase::Open && self.awaits_tables() {
            tracing::info!(database = self.face.name, "a repair brings tables that were chosen");
            self.repair_asked = true;
        }
    }

    /// Whether tables are chosen that only a repair brings.
    fn awaits_tables(&self) -> bool {
        let version = self.shared.engine.version();
        let here = version.database(&self.face.name).filter(|here| here.id == self.face.history);
        here.is_some_and(|here| !here.awaited_tables().is_empty())
    }

    /// Runs a repair; what becomes of the database then is decided by how that went.
    pub(super) async fn repair_now(&mut self) {
        let began = self.now();
        self.failed_task = None;
        // It puts rows and tables in place.
        if let Err(error) = self.permitted(&Right::ALL) {
            self.phase = Phase::Closed;
            return self.fail(&error);
        }
        let repaired = self.repair().await;
        if self.phase != Phase::Unoffered {
            self.phase = Phase::Closed;
        }
        match repaired {
            Ok(position) => {
                self.repair_asked = false;
                self.failures = 0;
                self.failed_task = None;
                self.skips.clear();
                self.backoff.reset();
                self.face.set_applied(position.seq, self.now());
                self.face.set_acknowledged(position.seq);
                let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
                let mut board = self.face.board.lock();
                board.clear();
                board.done(special(position.seq, Operation::Append, now), true, began, now, monotonic);
                drop(board);
                self.enabled();
            }
            Err(reason) if self.link.is_none() || self.stopping => {
                self.repair_asked &= !self.awaits_tables();
                tracing::info!(database = self.face.name, reason, "a repair was interrupted");
                self.face.board.lock().clear();
            }
            Err(reason) => {
                // The feed tells whether the database is still there, and asks again.
                self.repair_asked &= !self.awaits_tables();
                self.fail_with(&format!("repair: {reason}"));
            }
        }
    }

    /// Fetches and installs a repair. An error says what went wrong; when the session is gone, it starts over with the
    /// next one.
    async fn repair(&mut self) -> Result<Position, String> {
        let repairs = self.shared.repairs.clone();
        let _turn = repairs.acquire().await.map_err(|error| error.to_string())?;
        let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
        let here = self.applier.as_ref().map(|applier| applier.position().0.seq).unwrap_or_default();
        self.face.board.lock().repairing(here, now, monotonic);
        let (reply, answer) = oneshot::channel();
        self.say(Event::BeginRepair { history: self.face.history, reply });
        let feed = answer.await.ok().flatten().ok_or("the session ended")?;
        let result = self.fetch(feed).await;
        self.say(Event::EndRepair { feed });
        let position = result?;
        // The engine put another copy in place of the one that the applier knew.
        self.applier = None;
        Ok(position)
    }

    async fn fetch(&mut self, feed: FeedNumber) -> Result<Position, String> {
        let json = match self.answer(feed).await? {
            Answer::Manifest(json) => json,
            Answer::Piece(..) => return Err("a piece came before the manifest".into()),
        };
        let manifest: RepairManifest = tokio::task::spawn_blocking(move || serde_json::from_slice(&json))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("the manifest does not parse: {error}"))?;
        if manifest.position.history != self.face.history {
            return Err(format!("the manifest is of history {}", manifest.position.history));
        }
        let primary = self.link.as_ref().map(|link| link.primary.clone()).ok_or("the session ended")?;
        let install = self.shared.engine.repair_install(&primary, manifest).await;
        let mut install = install.map_err(|error| error.to_string())?;
        match self.fetch_pieces(feed, &mut install).await {
            Ok(()) => install.install().await.map_err(|error| error.to_string()),
            Err(reason) => {
                // Whole datafiles are not fetched again.
                install.pause();
                Err(reason)
            }
        }
    }

    async fn fetch_pieces(&mut self, feed: FeedNumber, install: &mut RepairInstall) -> Result<(), String> {
        let mut wanted = pieces(install.wanted().collect());
        let mut asked: VecDeque<Piece> = VecDeque::new();
        let mut early: HashMap<(u32, u64), Bytes> = HashMap::new();
        loop {
            while asked.len() < PIECES_AHEAD
                && let Some(piece) = wanted.next()
            {
                let Piece { datafile, offset, length } = piece;
                self.say(Event::Fetch { feed, datafile, offset, length });
                asked.push_back(piece);
            }
            let Some(next) = asked.front().copied() else { break };
            while !early.contains_key(&(next.datafile, next.offset)) {
                match self.answer(feed).await? {
                    Answer::Piece(piece, bytes) => drop(early.insert(piece, bytes)),
                    Answer::Manifest(_) => return Err("the manifest came twice".into()),
                }
            }
            let bytes = early.remove(&(next.datafile, next.offset)).unwrap_or_default();
            if bytes.len() != next.length as usize {
                return Err(format!("a piece of {} bytes came, {} were asked for", bytes.len(), next.length));
            }
            install.write(next.datafile as usize, bytes).await.map_err(|error| error.to_string())?;
            asked.pop_front();
        }
        Ok(())
    }

    /// The next answer to this repair. Other commands are obeyed meanwhile.
    async fn answer(&mut self, feed: FeedNumber) -> Result<Answer, String> {
        loop {
            match self.commands.recv().await {
                Some(Command::Manifest { feed: of, json }) if of == feed => return Ok(Answer::Manifest(json)),
                Some(Command::Piece { header, bytes }) if header.feed == feed => {
                    let datafile = u32::try_from(header.number).map_err(|_| "a piece of no datafile")?;
                    return Ok(Answer::Piece((datafile, header.offset), bytes));
                }
                Some(Command::RepairFailed { feed: of, reason }) if of == feed => return Err(reason),
                Some(Command::Progress { seq, behind_bytes }) => self.face.heard(seq, behind_bytes, self.now()),
                Some(Command::Offered(Some(seq))) => self.face.raise_primary_seq(seq),
                Some(Command::Offered(None)) => self.offered = false,
                Some(Command::Detach) => {
                    self.detach();
                    return Err("the session ended".into());
                }
                Some(Command::Attach(link)) => {
                    self.detach();
                    self.link = Some(link);
                    self.offered = false;
                    return Err("the session ended".into());
                }
                Some(Command::Stop) | None => {
                    self.stopping = true;
                    return Err("the follower stops".into());
                }
                Some(_) => {}
            }
        }
    }
}

enum Answer {
    Manifest(Bytes),
    Piece((u32, u64), Bytes),
}

/// Pieces of datafiles of these numbers and lengths, in order.
fn pieces(datafiles: Vec<(usize, u64)>) -> impl Iterator<Item = Piece> {
    let numbered = datafiles.into_iter().filter_map(|(datafile, length)| Some((u32::try_from(datafile).ok()?, length)));
    numbered.flat_map(|(datafile, length)| {
        (0..length.div_ceil(PIECE_BYTES)).map(move |index| {
            let offset = index * PIECE_BYTES;
            Piece { datafile, offset, length: (length - offset).min(PIECE_BYTES) as u32 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_byte_once() {
        let got: Vec<Piece> = pieces(vec![(0, 10), (1, 0), (2, PIECE_BYTES), (3, PIECE_BYTES + 1), (7, 2)]).collect();
        let piece = |datafile, offset, length| Piece { datafile, offset, length };
        let whole = PIECE_BYTES as u32;
        let wanted =
            [piece(0, 0, 10), piece(2, 0, whole), piece(3, 0, whole), piece(3, PIECE_BYTES, 1), piece(7, 0, 2)];
        assert_eq!(got, wanted);
    }
}
