//! `system.subscriptions`: named feeds, what they are of, and how far they are. The log that they hold: `system.pins`.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "subscriptions",
    columns: &[
        ("name", Kind::Text),
        ("database", Kind::Text),
        // NULL: it was dropped, and this with it can be dropped, too.
        ("table", Kind::Text),
        ("acknowledged_seq", Kind::Int),
        ("last_seq", Kind::Int),
        // Whether somebody reads now.
        ("attached", Kind::Bool),
        ("held_bytes", Kind::Int),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("since", Kind::Time),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    for subscription in engine.subscriptions() {
        let pin = subscription.pin;
        let history = engine.history(pin.key.history);
        let database = history.as_ref().and_then(|history| context.version.database(&history.name));
        let table = database
            .filter(|database| database.id == pin.key.history)
            .and_then(|database| database.table_by_id(subscription.table));
        rows.push([
            subscription.name.into(),
            history.as_ref().map(|history| &history.name).into(),
            table.map(|table| &table.table.name).into(),
            pin.acknowledged.into(),
            history.as_ref().map(|history| history.position.seq).into(),
            pin.attached.into(),
            pin.held_bytes.into(),
            pin.state.name().into(),
            pin.state.reason().into(),
            pin.since.into(),
        ]);
    }
    Ok(())
}
