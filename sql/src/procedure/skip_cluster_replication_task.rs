//! `skip_cluster_replication_task([database,] task, …)`: tasks that fail are left out, and kept as dead letters. The database
//! may be left out where only one fails.

use std::sync::Arc;

use datafusion::{arrow::datatypes::DataType, common::ScalarValue};
use tailrace_wal::Seq;

use super::{
    Argument,
    dead_letter::task,
    repair_database::{follower, refused},
};
use crate::{Instance, Result, SqlError};

pub(super) const NAME: &str = "skip_cluster_replication_task";
const SIGNATURE: &str = "its signature is skip_cluster_replication_task([database text,] task bigint, …)";

pub(super) async fn run(instance: &Arc<Instance>, given: Vec<Argument>) -> Result<Vec<String>> {
    let (database, tasks) = arguments(given)?;
    follower(instance)?.skip(database.as_deref(), &tasks).await.map_err(refused)
}

fn arguments(given: Vec<Argument>) -> Result<(Option<String>, Vec<Seq>)> {
    let wrong = |state, what: String| SqlError::new(state, what).hint(SIGNATURE);
    let (mut database, mut tasks) = (None, Vec::new());
    for (index, Argument { name, value }) in given.into_iter().enumerate() {
        let is_database = match name.as_deref() {
            Some("database") => true,
            Some("task") => false,
            Some(name) => return Err(wrong("42883", format!("{NAME} has no argument {name:?}"))),
            None => {
                index == 0 && matches!(value.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
            }
        };
        if is_database && database.is_some() {
            return Err(wrong("42883", format!("argument \"database\" of {NAME} is given twice")));
        }
        let of = if is_database { DataType::Utf8 } else { DataType::Int64 };
        match value.cast_to(&of) {
            Ok(ScalarValue::Utf8(Some(text))) => database = Some(text),
            Ok(ScalarValue::Int64(Some(id))) if value.data_type().is_integer() => tasks.push(task(id)?),
            _ if is_database => return Err(wrong("22023", format!("{value} is no database"))),
            _ => return Err(wrong("22023", format!("{value} is no task id"))),
        }
    }
    match tasks.is_empty() {
        true => Err(wrong("42883", format!("{NAME} needs the id of a task"))),
        false => Ok((database, tasks)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: Vec<ScalarValue>) -> Result<(Option<String>, Vec<Seq>)> {
        arguments(values.into_iter().map(|value| Argument { name: None, value }).collect())
    }

    #[test]
    fn the_database_may_be_left_out_and_ids_may_be_many() {
        let market = || ScalarValue::from("market");
        let ids = |ids: &[i64]| ids.iter().map(|id| ScalarValue::from(*id)).collect::<Vec<_>>();
        assert_eq!(given(ids(&[938])).unwrap(), (None, vec![Seq(938)]));
        let both = [vec![market()], ids(&[938, 939])].concat();
        assert_eq!(given(both).unwrap(), (Some("market".into()), vec![Seq(938), Seq(939)]));
        let named = vec![
            Argument { name: Some("task".into()), value: 7i64.into() },
            Argument { name: Some("database".into()), value: market() },
        ];
        assert_eq!(arguments(named).unwrap(), (Some("market".into()), vec![Seq(7)]));
        let wrong = [
            (vec![], "42883"),
            (vec![market()], "42883"),
            (vec![market(), market()], "22023"),
            (vec![market(), ScalarValue::from(0i64)], "22023"),
            (vec![market(), ScalarValue::Int64(None)], "22023"),
            (vec![ScalarValue::from(1.5)], "22023"),
        ];
        for (values, state) in wrong {
            let error = given(values.clone()).unwrap_err();
            assert_eq!(error.sqlstate, state, "{values:?}");
        }
    }
}
