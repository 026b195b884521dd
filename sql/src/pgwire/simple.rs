//! The simple query protocol: statements one by one, each its own transaction unless one was begun.

use tokio::io::AsyncWrite;

use super::{
    backend::{self, Bare},
    connection::{Connection, Failure},
    rows::{RowSource, Sent},
};
use crate::{Notice, Outcome, Statement, statement::Kind};

impl<W: AsyncWrite + Unpin> Connection<W> {
    /// Runs the statements of `sql`; the first that fails ends it.
    pub(super) async fn simple_query(&mut self, sql: &str) -> Result<(), Failure> {
        let statements = self.session.parse(sql)?;
        if statements.is_empty() {
            backend::bare(&mut self.out, Bare::EmptyQueryResponse);
        }
        for statement in &statements {
            self.simple_statement(statement).await?;
        }
        Ok(())
    }

    async fn simple_statement(&mut self, statement: &Statement) -> Result<(), Failure> {
        let (token, _running) = self.cancellable();
        match self.execute(statement, Vec::new(), &token).await? {
            Outcome::Rows(stream) => {
                let mut source = RowSource::new(stream, &[]);
                backend::row_description(&mut self.out, source.columns());
                if let Sent::All(rows) = self.send_rows(&mut source, &token, None).await? {
                    backend::command_complete(&mut self.out, &rows_tag(statement, rows));
                }
            }
            Outcome::Done { tag, notices } => self.done(&tag, &notices),
        }
        Ok(())
    }

    /// Answers a command.
    pub(super) fn done(&mut self, tag: &str, notices: &[Notice]) {
        notices.iter().for_each(|notice| backend::notice_response(&mut self.out, notice));
        backend::command_complete(&mut self.out, tag);
    }
}

/// The tag of a statement that gave rows.
pub(super) fn rows_tag(statement: &Statement, rows: u64) -> String {
    match statement.parsed().kind {
        Kind::Explain { .. } => "EXPLAIN".to_owned(),
        Kind::Show(_) | Kind::ShowAll => "SHOW".to_owned(),
        Kind::Call { .. } => "CALL".to_owned(),
        _ => format!("SELECT {rows}"),
    }
}
