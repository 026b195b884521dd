//! `system.pins`: who holds back the log.

use tailrace_wal::PinState;

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows, Value},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "pins",
    columns: &[
        ("feed", Kind::Text),
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        ("acknowledged_seq", Kind::Int),
        ("applied_seq", Kind::Int),
        ("restart_seq", Kind::Int),
        ("lsn", Kind::Int),
        ("held_bytes", Kind::Int),
        ("state", Kind::Text),
        ("reason", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    for pin in engine.log().pins() {
        let (state, reason) = match &pin.state {
            PinState::Reserved => ("RESERVED", Value::Null),
            PinState::Lost { reason } => ("LOST", reason.into()),
        };
        rows.push([
            (&pin.key.feed).into(),
            engine.history(pin.key.history).map(|history| history.name).into(),
            pin.key.history.to_string().into(),
            pin.acknowledged.into(),
            pin.applied.into(),
            pin.restart.into(),
            pin.lsn.into(),
            pin.held_bytes.into(),
            state.into(),
            reason,
        ]);
    }
    Ok(())
}
