//! `system.pins`: who holds back the log, and how much is left of what it may.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "pins",
    columns: &[
        ("feed", Kind::Text),
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        // Whether its feed is attached now.
        ("attached", Kind::Bool),
        ("acknowledged_seq", Kind::Int),
        ("applied_seq", Kind::Int),
        ("restart_seq", Kind::Int),
        ("lsn", Kind::Int),
        ("held_bytes", Kind::Int),
        // What is left of wal.pin_max_bytes; 0 once it is lost.
        ("bytes_left", Kind::Int),
        ("max_bytes", Kind::Int),
        // For how long it has not moved although there was something to move on to.
        ("age_seconds", Kind::Float),
        ("age_left_seconds", Kind::Float),
        ("max_age_seconds", Kind::Float),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("since", Kind::Time),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    for pin in engine.log().pins() {
        let left = !pin.state.is_lost();
        rows.push([
            (&pin.key.feed).into(),
            engine.history(pin.key.history).map(|history| history.name).into(),
            pin.key.history.to_string().into(),
            pin.attached.into(),
            pin.acknowledged.into(),
            pin.applied.into(),
            pin.restart.into(),
            pin.lsn.into(),
            pin.held_bytes.into(),
            if left { pin.bytes_max.saturating_sub(pin.held_bytes) } else { 0 }.into(),
            pin.bytes_max.into(),
            pin.stalled.into(),
            if left { pin.stalled_max.saturating_sub(pin.stalled) } else { Default::default() }.into(),
            pin.stalled_max.into(),
            pin.state.name().into(),
            pin.state.reason().into(),
            pin.since.into(),
        ]);
    }
    Ok(())
}
