//! The extended query protocol: prepared statements and portals.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    arrow::datatypes::{Schema, SchemaRef},
    common::ScalarValue,
};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::{
    backend::{self, Bare},
    connection::{Connection, Failure, unexpected, unless_gone},
    frontend::{Bind, Frontend, Parse, Target},
    parameter::{ParameterType, read_parameter},
    rows::{RowSource, Sent},
    simple::rows_tag,
    types::{Format, wire_columns},
};
use crate::{Outcome, Result, SqlError, Statement, statement::Kind};

/// Most prepared statements, and most portals, of a connection.
const NAMES_MAX: usize = 10_000;

/// Prepared statements and portals of a connection.
#[derive(Default)]
pub(super) struct Extended {
    /// A message failed: what follows is skipped until Sync.
    pub(super) failed: bool,
    statements: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
}

/// A prepared statement.
struct Prepared {
    /// `None`: the empty statement.
    statement: Option<Statement>,
    /// Types of the parameters.
    parameters: Vec<ParameterType>,
    /// Columns of its result; none for a command.
    columns: SchemaRef,
}

/// A prepared statement with values.
struct Portal {
    prepared: Arc<Prepared>,
    parameters: Vec<ScalarValue>,
    formats: Vec<i16>,
    state: PortalState,
}

enum PortalState {
    /// Not run yet.
    New,
    /// Some rows are sent.
    Suspended(RowSource, CancellationToken),
    /// Run; `rows`: its rows are all sent.
    Done { rows: bool },
}

impl Extended {
    /// Portals end with their transaction.
    pub(super) fn end_of_query(&mut self, status: char) {
        if status != 'T' {
            self.portals.clear();
        }
    }

    fn prepared(&self, name: &str) -> Result<Arc<Prepared>> {
        self.statements
            .get(name)
            .cloned()
            .ok_or_else(|| SqlError::new("26000", format!("prepared statement {name:?} does not exist")))
    }

    fn portal(&mut self, name: &str) -> Result<&mut Portal> {
        self.portals.get_mut(name).ok_or_else(|| SqlError::new("34000", format!("portal {name:?} does not exist")))
    }
}

/// Refuses a name that is taken (the unnamed one is replaced), and one too many.
fn check_name<T>(kind: &str, sqlstate: &'static str, of: &HashMap<String, T>, name: &str) -> Result<()> {
    if !name.is_empty() && of.contains_key(name) {
        return Err(SqlError::new(sqlstate, format!("{kind} {name:?} already exists")).hint("close it first"));
    }
    if of.len() >= NAMES_MAX && !of.contains_key(name) {
        return Err(SqlError::new("54000", format!("this connection has {NAMES_MAX} {kind}s")).hint("close some"));
    }
    Ok(())
}

impl<W: AsyncWrite + Unpin> Connection<W> {
    /// Carries out a message of the extended protocol.
    pub(super) async fn extended_message(&mut self, message: Frontend) -> Result<(), Failure> {
        match message {
            Frontend::Parse(parse) => self.parse(parse).await,
            Frontend::Bind(bind) => self.bind(bind).map_err(Failure::from),
            Frontend::Describe(Target::Statement, name) => self.describe_statement(&name).map_err(Failure::from),
            Frontend::Describe(Target::Portal, name) => self.describe_portal(&name).map_err(Failure::from),
            Frontend::Execute { portal, max_rows } => self.execute_portal(&portal, max_rows).await,
            Frontend::Close(target, name) => {
                match target {
                    Target::Statement => drop(self.extended.statements.remove(&name)),
                    Target::Portal => drop(self.extended.portals.remove(&name)),
                }
                backend::bare(&mut self.out, Bare::CloseComplete);
                Ok(())
            }
            other => Err(unexpected(&format!("{other:?} within an extended query"))),
        }
    }

    async fn parse(&mut self, parse: Parse) -> Result<(), Failure> {
        check_name("prepared statement", "42P05", &self.extended.statements, &parse.name)?;
        let mut statements = self.session.parse(&parse.sql)?;
        if statements.len() > 1 {
            return Err(SqlError::new("42601", "cannot insert multiple commands into a prepared statement")
                .hint("prepare them one by one, or send them as a simple query")
                .into());
        }
        let statement = statements.pop();
        let (inferred, columns) = match &statement {
            Some(statement) => {
                let (token, _running) = self.cancellable();
                let described = unless_gone(&self.gone, &token, self.session.describe(statement)).await?;
                described.map_err(|error| self.cancelled(&token, error))?
            }
            None => (Vec::new(), Arc::new(Schema::empty())),
        };
        let count = inferred.len().max(parse.parameter_types.len());
        let parameters = (0..count).map(|index| {
            let declared = parse.parameter_types.get(index).copied().unwrap_or(0);
            ParameterType::new(declared, inferred.get(index).cloned().flatten())
        });
        let prepared = Prepared { statement, parameters: parameters.collect(), columns };
        self.extended.statements.insert(parse.name, Arc::new(prepared));
        backend::bare(&mut self.out, Bare::ParseComplete);
        Ok(())
    }

    fn bind(&mut self, bind: Bind) -> Result<()> {
        let prepared = self.extended.prepared(&bind.statement)?;
        check_name("portal", "42P03", &self.extended.portals, &bind.portal)?;
        let (given, wanted) = (bind.parameters.len(), prepared.parameters.len());
        if given != wanted {
            return Err(SqlError::new("08P01", format!("{given} parameters were given, the statement has {wanted}")));
        }
        if bind.parameter_formats.len() > 1 && bind.parameter_formats.len() != given {
            return Err(SqlError::new("08P01", "there are more or fewer parameter formats than parameters"));
        }
        let columns = prepared.columns.fields().len();
        if bind.result_formats.len() > 1 && bind.result_formats.len() != columns {
            let given = bind.result_formats.len();
            return Err(SqlError::new("08P01", format!("{given} result formats were given for {columns} columns")));
        }
        let values = bind.parameters.iter().zip(&prepared.parameters).enumerate();
        let parameters = values
            .map(|(index, (value, of))| {
                read_parameter(index + 1, of, value.as_deref(), Format::of(&bind.parameter_formats, index))
            })
            .collect::<Result<_>>()?;
        let portal = Portal { prepared, parameters, formats: bind.result_formats, state: PortalState::New };
        self.extended.portals.insert(bind.portal, portal);
        backend::bare(&mut self.out, Bare::BindComplete);
        Ok(())
    }

    fn describe_statement(&mut self, name: &str) -> Result<()> {
        let prepared = self.extended.prepared(name)?;
        let types: Vec<u32> = prepared.parameters.iter().map(|parameter| parameter.oid).collect();
        backend::parameter_description(&mut self.out, &types);
        self.columns(&prepared, &[]);
        Ok(())
    }

    fn describe_portal(&mut self, name: &str) -> Result<()> {
        let portal = self.extended.portal(name)?;
        let (prepared, formats) = (Arc::clone(&portal.prepared), portal.formats.clone());
        self.columns(&prepared, &formats);
        Ok(())
    }

    fn columns(&mut self, prepared: &Prepared, formats: &[i16]) {
        // A query may select nothing of its rows; it gives rows all the same.
        let is_query = |statement: &Statement| matches!(statement.parsed().kind, Kind::Query(_));
        if prepared.columns.fields().is_empty() && !prepared.statement.as_ref().is_some_and(is_query) {
            backend::bare(&mut self.out, Bare::NoData);
        } else {
            backend::row_description(&mut self.out, &wire_columns(&prepared.columns, formats));
        }
    }

    async fn execute_portal(&mut self, name: &str, max_rows: u32) -> Result<(), Failure> {
        // Taken out while it runs; a portal that fails is gone.
        let Some(mut portal) = self.extended.portals.remove(name) else {
            return Err(SqlError::new("34000", format!("portal {name:?} does not exist")).into());
        };
        portal.state =
            self.run_portal(&portal.prepared, &portal.parameters, &portal.formats, portal.state, max_rows).await?;
        self.extended.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    async fn run_portal(
        &mut self,
        prepared: &Prepared,
        parameters: &[ScalarValue],
        formats: &[i16],
        state: PortalState,
        max_rows: u32,
    ) -> Result<PortalState, Failure> {
        let Some(statement) = &prepared.statement else {
            backend::bare(&mut self.out, Bare::EmptyQueryResponse);
            return Ok(PortalState::Done { rows: false });
        };
        let (mut source, token, _running) = match state {
            PortalState::Done { rows: true } => {
                backend::command_complete(&mut self.out, &rows_tag(statement, 0));
                return Ok(state);
            }
            PortalState::Done { rows: false } => {
                return Err(SqlError::new("55000", "the portal ran already").hint("bind the statement again").into());
            }
            PortalState::New => {
                let (token, running) = self.cancellable();
                match self.execute(statement, parameters.to_vec(), &token).await? {
                    Outcome::Rows(stream) => {
                        let source = RowSource::new(stream, formats).described(&prepared.columns, formats)?;
                        (source, token, running)
                    }
                    Outcome::Done { tag, notices } => {
                        self.done(&tag, &notices);
                        return Ok(PortalState::Done { rows: false });
                    }
                }
            }
            PortalState::Suspended(source, token) => {
                let running = self.cancellable_again(&token);
                (source, token, running)
            }
        };
        let rows_max = usize::try_from(max_rows).ok().filter(|rows| *rows > 0);
        match self.send_rows(&mut source, &token, rows_max).await? {
            Sent::All(rows) => {
                backend::command_complete(&mut self.out, &rows_tag(statement, rows));
                Ok(PortalState::Done { rows: true })
            }
            Sent::Suspended => {
                backend::bare(&mut self.out, Bare::PortalSuspended);
                Ok(PortalState::Suspended(source, token))
            }
        }
    }
}
