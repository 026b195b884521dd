//! `create_remote_cluster(name, addresses [, ca, certificate, key])`, `drop_remote_cluster(name)`.

use std::sync::Arc;

use tailrace_engine::RemoteCluster;

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, SqlError, provider::CATALOG};

pub(super) const CREATE: &[Parameter] = &[
    Parameter::required("name", Type::Text),
    Parameter::required("addresses", Type::Text),
    Parameter::optional("ca", Type::Text),
    Parameter::optional("certificate", Type::Text),
    Parameter::optional("key", Type::Text),
];
pub(super) const DROP: &[Parameter] = &[Parameter::required("name", Type::Text)];

/// Addresses are `host:port`, with commas between several.
pub(super) async fn create(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let name = arguments.text(0)?;
    if name == CATALOG {
        return Err(
            SqlError::new("42939", format!("{CATALOG:?} is this node's own catalog")).hint("choose another name")
        );
    }
    let file = |index| Ok::<_, SqlError>(arguments.optional_text(index)?.map(str::to_owned));
    let cluster = RemoteCluster {
        addresses: arguments.text(1)?.split(',').map(|address| address.trim().to_owned()).collect(),
        ca: file(2)?,
        certificate: file(3)?,
        key: file(4)?,
    };
    instance.remotes.create(name, cluster).await?;
    // As a name without quotes is read.
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_lowercase());
    Ok(match plain {
        true => Vec::new(),
        false => vec![format!("write the name in double quotes: \"{name}\".market.bars")],
    })
}

/// What reads from it runs to its end.
pub(super) async fn drop(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    instance.remotes.forget(arguments.text(0)?).await?;
    Ok(Vec::new())
}
