//! `forget_pin(feed [, database])`: a feed that will not come back holds no log any more, and is listed no longer.

use std::{collections::BTreeSet, sync::Arc};

use tailrace_wal::{HistoryId, PinStatus};

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, SqlError};

pub(super) const PARAMETERS: &[Parameter] =
    &[Parameter::required("feed", Type::Text), Parameter::optional("database", Type::Text)];

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let (feed, database) = (arguments.text(0)?, arguments.optional_text(1)?);
    let engine = &instance.engine;
    let pins = engine.log().pins();
    let of_feed: Vec<&PinStatus> = pins.iter().filter(|pin| pin.key.feed == feed).collect();
    if of_feed.is_empty() {
        let feeds: BTreeSet<&str> = pins.iter().map(|pin| pin.key.feed.as_str()).collect();
        let error = SqlError::new("42704", format!("there is no pin of feed {feed:?}"));
        return Err(match feeds.is_empty() {
            true => error.hint("there are no pins at all"),
            false => error.hint(format!("there are pins of {}", quoted(feeds))),
        });
    }
    let name = |pin: &PinStatus| engine.history(pin.key.history).map(|history| history.name);
    let chosen: Vec<&PinStatus> = match database {
        None => of_feed.clone(),
        Some(database) => of_feed.iter().copied().filter(|pin| name(pin).as_deref() == Some(database)).collect(),
    };
    if let (Some(database), true) = (database, chosen.is_empty()) {
        let names: BTreeSet<String> = of_feed.iter().filter_map(|pin| name(pin)).collect();
        let error = SqlError::new("42704", format!("feed {feed:?} has no pin of database {database:?}"));
        return Err(error.hint(format!("it has pins of {}", quoted(names.iter().map(String::as_str)))));
    }
    if chosen.iter().any(|pin| pin.attached) {
        return Err(SqlError::new("55006", format!("feed {feed:?} is attached and uses its pin now"))
            .hint("stop it where it runs, or switch off the replication of the database, and call this again"));
    }
    // One at a time where a database is named: a name that was dropped and created anew has a pin for each history.
    let histories: Vec<Option<HistoryId>> = match database {
        None => vec![None],
        Some(_) => chosen.iter().map(|pin| Some(pin.key.history)).collect(),
    };
    for history in histories {
        let forgotten = engine.forget_pins(feed, history).await?;
        if let Some(publisher) = &instance.publisher {
            publisher.forget_feed(feed, history);
        }
        tracing::info!(feed, database, pins = forgotten, "pins were forgotten on request");
    }
    Ok(Vec::new())
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
