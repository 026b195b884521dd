//! Errors of the SQL parser.

use datafusion::sql::sqlparser::parser::ParserError;

use crate::SqlError;

/// `42601` with the place in `sql` where the parser stopped.
pub(crate) fn syntax_error(error: &ParserError, sql: &str) -> SqlError {
    match error {
        ParserError::RecursionLimitExceeded => SqlError::new("54001", "the statement is nested too deeply"),
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => {
            let (message, place) = split_place(text);
            let position = place.and_then(|(line, column)| position_of(sql, line, column));
            SqlError::syntax(format!("syntax error: {}", lower_first(message))).at(position)
        }
    }
}

/// 1-based character of a 1-based line and column.
pub(crate) fn position_of(sql: &str, line: u64, column: u64) -> Option<usize> {
    let line = usize::try_from(line).ok()?.checked_sub(1)?;
    let column = usize::try_from(column).ok()?;
    if line >= sql.split('\n').count() {
        return None;
    }
    let before: usize = sql.split_inclusive('\n').take(line).map(|line| line.chars().count()).sum();
    (column > 0 && before + column <= sql.chars().count() + 1).then_some(before + column)
}

/// Cuts ` at Line: 1, Column: 8` off a message.
fn split_place(text: &str) -> (&str, Option<(u64, u64)>) {
    let Some((message, place)) = text.rsplit_once(" at Line: ") else { return (text, None) };
    let Some((line, column)) = place.split_once(", Column: ") else { return (text, None) };
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    match (line.parse(), column.parse()) {
        (Ok(line), Ok(column)) => (message, Some((line, column))),
        _ => (text, None),
    }
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_becomes_a_position() {
        let error = ParserError::ParserError("Expected: an expression, found: FROM at Line: 2, Column: 3".to_owned());
        let error = syntax_error(&error, "select\n  from t");
        assert_eq!(error.message, "syntax error: expected: an expression, found: FROM");
        assert_eq!((error.sqlstate.as_ref(), error.position), ("42601", Some(10)));
    }

    #[test]
    fn a_place_outside_the_statement_is_left_out() {
        assert_eq!(position_of("select", 3, 1), None);
        assert_eq!(position_of("select", 0, 0), None);
    }
}
