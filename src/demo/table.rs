//! Rows as text.

use std::fmt;

/// A query's result, as the client shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TextTable {
    /// Column names.
    pub(super) columns: Vec<String>,
    /// Values; NULL is empty.
    pub(super) rows: Vec<Vec<String>>,
}

impl fmt::Display for TextTable {
    /// Columns as wide as their longest value, numbers to the right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = |index: usize| self.rows.iter().filter_map(move |row| row.get(index));
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|index| {
                column(index).chain([&self.columns[index]]).map(|value| value.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let numeric: Vec<bool> = (0..self.columns.len())
            .map(|index| column(index).all(|value| value.is_empty() || value.parse::<f64>().is_ok()))
            .collect();
        let line = |values: &[String]| {
            let cells = values.iter().zip(&widths).zip(&numeric).map(|((value, width), numeric)| {
                if *numeric { format!("{value:>width$}") } else { format!("{value:<width$}") }
            });
            cells.collect::<Vec<_>>().join(" | ")
        };
        writeln!(f, " {}", line(&self.columns).trim_end())?;
        writeln!(f, "-{}-", widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-+-"))?;
        for row in &self.rows {
            writeln!(f, " {}", line(row).trim_end())?;
        }
        writeln!(f, "({} row{})", self.rows.len(), if self.rows.len() == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let table = TextTable {
            columns: vec!["id".to_owned(), "name".to_owned()],
            rows: vec![vec!["1".to_owned(), "a".to_owned()], vec!["1000".to_owned(), "".to_owned()]],
        };
        assert_eq!(table.to_string(), "   id | name\n------+------\n    1 | a\n 1000 |\n(2 rows)\n");
    }
}
