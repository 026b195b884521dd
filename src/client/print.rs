//! Answers as a table for people, or as JSON lines for programs.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};
use tokio_postgres::{Column, SimpleQueryRow};

use crate::tail::output::{Kind, json_line, kind};

/// Rows of a statement, as text.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    columns: Vec<(String, Kind)>,
    rows: Vec<Vec<Option<String>>>,
    /// What the node noted.
    pub(crate) notices: Vec<String>,
}

impl Answer {
    pub(super) fn new(columns: &[Column]) -> Self {
        let columns = columns.iter().map(|column| (column.name().to_owned(), kind(column.type_())));
        Self { columns: columns.collect(), ..Self::default() }
    }

    pub(super) fn push(&mut self, row: &SimpleQueryRow) {
        if self.columns.len() != row.len() {
            // What is not described is text.
            self.columns = row.columns().iter().map(|column| (column.name().to_owned(), Kind::Text)).collect();
        }
        let values = (0..row.len()).map(|index| row.try_get(index).ok().flatten().map(ToOwned::to_owned));
        self.rows.push(values.collect());
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A value by row and column; `None` also where there is no such column.
    pub(crate) fn value(&self, row: usize, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|(name, _)| name == column)?;
        self.rows.get(row)?.get(index)?.as_deref()
    }
}

/// Prints an answer to standard output.
pub(crate) fn print(answer: &Answer, json: bool) -> io::Result<()> {
    write(answer, json, &mut io::stdout().lock())
}

fn write(answer: &Answer, json: bool, to: &mut impl Write) -> io::Result<()> {
    if json {
        let columns: Vec<(String, Kind)> = answer
            .columns
            .iter()
            .map(|(name, kind)| (format!("{}:", serde_json::Value::from(name.as_str())), *kind))
            .collect();
        for row in &answer.rows {
            json_line(to, &columns, row.iter().map(Option::as_deref))?;
        }
        return to.flush();
    }
    if answer.columns.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(answer.columns.iter().map(|(name, _)| name));
    for row in &answer.rows {
        table.add_row(row.iter().map(|value| value.as_deref().unwrap_or_default()));
    }
    for (index, (_, kind)) in answer.columns.iter().enumerate() {
        if let (Kind::Number, Some(column)) = (kind, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        writeln!(to, "{}", line.trim_end())?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        Answer {
            columns: vec![("name".to_owned(), Kind::Text), ("rows".to_owned(), Kind::Number)],
            rows: vec![vec![Some("nightly".to_owned()), Some("12".to_owned())], vec![Some("a \"b\"".to_owned()), None]],
            notices: Vec::new(),
        }
    }

    #[test]
    fn a_line_of_json_per_row() {
        let mut out = Vec::new();
        write(&answer(), true, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "{\"name\":\"nightly\",\"rows\":12}\n{\"name\":\"a \\\"b\\\"\",\"rows\":null}\n");
    }

    #[test]
    fn a_table_and_values_by_name() {
        let mut out = Vec::new();
        write(&answer(), false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [vec!["name", "rows"], vec!["nightly", "12"], vec!["a", "\"b\""]]);
        assert_eq!(
            (answer().value(0, "rows"), answer().value(1, "rows"), answer().value(0, "x")),
            (Some("12"), None, None)
        );
    }
}
