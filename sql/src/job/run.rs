//! The statements of a job: which are allowed, and one after another in a session of their own.

use datafusion::{
    arrow::{
        array::RecordBatch,
        util::display::{ArrayFormatter, FormatOptions},
    },
    execution::SendableRecordBatchStream,
};
use futures::TryStreamExt;
use tailrace_engine::JOB_MESSAGE_BYTES_MAX;
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome, Result, Session, SqlError, Statement,
    statement::{Kind, Parser},
};

/// What the statements came to.
#[derive(Debug)]
pub(super) struct Done {
    /// Rows that they wrote or returned.
    pub(super) rows: u64,
    /// What they said, or the error.
    pub(super) message: String,
    /// `Err`: the first one that failed; those behind it were not run.
    pub(super) result: Result<()>,
}

/// Parses the statements of a job and refuses what only a client can do.
pub(crate) fn check(parser: &Parser, sql: &str) -> Result<()> {
    let statements = parser.parse(sql)?;
    if statements.is_empty() {
        return Err(SqlError::new("22023", "the job has no statement"));
    }
    let refuse = |what: &str, hint: &str| {
        Err(SqlError::new("0A000", format!("{what} is not possible in a job")).hint(hint.to_owned()))
    };
    for statement in &statements {
        let parsed = statement.parsed();
        match &parsed.kind {
            Kind::Begin | Kind::Commit | Kind::Rollback => {
                return refuse(statement.tag(), "each statement of a job is a transaction of its own");
            }
            _ if parsed.parameters > 0 => return refuse("a parameter ($1)", "write the value into the statement"),
            _ => {}
        }
    }
    Ok(())
}

/// Runs all statements of a text until one fails or `cancel` fires.
pub(super) async fn run(session: &Session, sql: &str, cancel: &CancellationToken) -> Done {
    let mut done = Done { rows: 0, message: String::new(), result: Ok(()) };
    if let Err(error) = all(session, sql, cancel, &mut done).await {
        done.say(&in_words(&error));
        done.result = Err(error);
    }
    done
}

async fn all(session: &Session, sql: &str, cancel: &CancellationToken, done: &mut Done) -> Result<()> {
    // The job's own limit counts.
    session.set("statement_timeout", "0")?;
    let statements = session.parse(sql)?;
    for (index, statement) in statements.iter().enumerate() {
        if cancel.is_cancelled() {
            return Err(SqlError::new("57014", "cancelled before this statement").detail(place(index, &statements)));
        }
        one(session, statement, cancel, done).await.map_err(|error| match statements.len() {
            1 => error,
            _ => SqlError { message: format!("{}: {}", place(index, &statements), error.message), ..error },
        })?;
    }
    Ok(())
}

fn place(index: usize, statements: &[Statement]) -> String {
    format!("statement {} of {}", index + 1, statements.len())
}

async fn one(session: &Session, statement: &Statement, cancel: &CancellationToken, done: &mut Done) -> Result<()> {
    match session.execute(statement, Vec::new(), cancel.clone()).await? {
        Outcome::Done { tag, notices } => {
            done.say(&tag);
            notices.iter().for_each(|notice| done.say(&notice.text));
            done.rows += rows_of(&tag);
        }
        Outcome::Rows(rows) => {
            let is_call = matches!(statement.parsed().kind, Kind::Call { .. });
            let (count, first) = drain(rows, is_call).await?;
            done.rows += count;
            done.say(&first.unwrap_or_else(|| format!("{} {count}", statement.tag())));
            if cancel.is_cancelled() {
                return Err(SqlError::new("57014", "cancelled"));
            }
        }
    }
    Ok(())
}

/// How many rows there are, and of what a procedure answers the first one in words.
async fn drain(mut rows: SendableRecordBatchStream, is_call: bool) -> Result<(u64, Option<String>)> {
    let (mut count, mut first) = (0, None);
    while let Some(batch) = rows.try_next().await? {
        if is_call && first.is_none() && batch.num_rows() > 0 {
            first = Some(row_in_words(&batch)?);
        }
        count += batch.num_rows() as u64;
    }
    // What a procedure answers is about what it did.
    Ok((if is_call { 0 } else { count }, first))
}

fn row_in_words(batch: &RecordBatch) -> Result<String> {
    let options = FormatOptions::default();
    let fields = batch.schema_ref().fields().iter().zip(batch.columns()).filter(|(_, column)| column.is_valid(0));
    let words = fields.map(|(field, column)| {
        Ok(format!("{} {}", field.name(), ArrayFormatter::try_new(column.as_ref(), &options)?.value(0)))
    });
    Ok(words.collect::<Result<Vec<_>>>()?.join(", "))
}

/// The rows of a tag: `INSERT 0 3`, `COPY 3`.
fn rows_of(tag: &str) -> u64 {
    const COUNTED: [&str; 6] = ["INSERT ", "COPY ", "DELETE ", "UPDATE ", "MERGE ", "SELECT "];
    if !COUNTED.iter().any(|counted| tag.starts_with(counted)) {
        return 0;
    }
    tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// An error as one line.
pub(super) fn in_words(error: &SqlError) -> String {
    let mut text = format!("{} ({})", error.message, error.sqlstate);
    for more in [&error.detail, &error.hint].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(more);
    }
    text
}

impl Done {
    fn say(&mut self, text: &str) {
        // The error, which comes last, is what matters most.
        if self.message.len() + text.len() > JOB_MESSAGE_BYTES_MAX {
            self.message.clear();
            self.message.push('…');
        }
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_client_can_do_is_refused() {
        let parser = Parser::new();
        for (sql, state, words) in [
            ("BEGIN; INSERT INTO t VALUES (1); COMMIT", "0A000", "BEGIN is not possible in a job"),
            ("INSERT INTO t VALUES (1); ROLLBACK", "0A000", "ROLLBACK is not possible"),
            ("COPY t FROM STDIN", "0A000", "COPY FROM STDIN is not supported"),
            ("INSERT INTO t VALUES ($1)", "0A000", "parameter"),
            ("  ", "22023", "no statement"),
            ("SELEC 1", "42601", ""),
        ] {
            let error = check(&parser, sql).unwrap_err();
            assert!(error.sqlstate == state && error.message.contains(words), "{sql}: {error:?}");
        }
        for sql in
            ["INSERT INTO t SELECT * FROM u; CALL flush();", "COPY t FROM '/x.csv'", "SELECT 1", "SET timezone = 'UTC'"]
        {
            check(&parser, sql).unwrap();
        }
    }

    #[test]
    fn rows_stand_in_tags() {
        assert_eq!(["INSERT 0 3", "COPY 7", "CREATE TABLE", "CALL"].map(rows_of), [3, 7, 0, 0]);
    }
}
