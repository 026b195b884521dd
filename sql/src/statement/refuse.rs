//! Statements that are refused, each by its name.

use datafusion::sql::sqlparser::ast::Statement;

use crate::SqlError;

/// `0A000` for a statement outside the allowlist.
pub(super) fn refuse(statement: &Statement) -> SqlError {
    let name = name_of(&statement.to_string());
    let error = SqlError::unsupported(&name);
    match name.as_str() {
        "CREATE SCHEMA" => error.hint("a database is a schema here: CREATE DATABASE name"),
        "DROP SCHEMA" => error.hint("a database is a schema here: DROP DATABASE name"),
        "SHOW DATABASES" | "SHOW SCHEMAS" => error.hint("SELECT * FROM system.databases"),
        "UPDATE" | "DELETE" | "MERGE" | "TRUNCATE" => error.hint("rows can be appended only"),
        "PREPARE" | "EXECUTE" => error.hint("prepare statements with your driver"),
        "SAVEPOINT" | "RELEASE" => error.hint("ROLLBACK ends the whole transaction"),
        _ => error,
    }
}

/// The words that name a statement: `ALTER TABLE`, `CREATE INDEX`, `UPDATE`.
fn name_of(text: &str) -> String {
    const NOISE: [&str; 9] = ["OR", "REPLACE", "TEMPORARY", "TEMP", "UNIQUE", "IF", "EXISTS", "UNLOGGED", "RECURSIVE"];
    const TWO: [&str; 7] = ["CREATE", "ALTER", "DROP", "SHOW", "REFRESH", "LOCK", "COPY"];
    let mut words = text.split_whitespace().map(|word| word.trim_end_matches(['(', ';'])).filter(|word| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic()) && word.to_uppercase() == *word
    });
    let Some(first) = words.next() else { return "this statement".to_owned() };
    if !TWO.contains(&first) {
        return first.to_owned();
    }
    let mut second: Vec<&str> = words.filter(|word| !NOISE.contains(word)).take(2).collect();
    if !matches!(second.first(), Some(&("EXTERNAL" | "MATERIALIZED" | "FOREIGN" | "EVENT"))) {
        second.truncate(1);
    }
    std::iter::once(first).chain(second).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_statement() {
        assert_eq!(name_of("UPDATE t SET a = 1"), "UPDATE");
        assert_eq!(name_of("CREATE OR REPLACE VIEW v AS SELECT 1"), "CREATE VIEW");
        assert_eq!(name_of("CREATE UNIQUE INDEX i ON t(a)"), "CREATE INDEX");
        assert_eq!(name_of("ALTER TABLE t ADD COLUMN a INT"), "ALTER TABLE");
        assert_eq!(name_of("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/x'"), "CREATE EXTERNAL TABLE");
        assert_eq!(name_of("DROP MATERIALIZED VIEW v"), "DROP MATERIALIZED VIEW");
    }
}
