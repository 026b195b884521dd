//! The statement that a command line asks for.

use super::TailArgs;

/// What is read. The seq is always among the columns: last, where it was not asked for.
pub(super) fn of(args: &TailArgs) -> String {
    let columns = match &args.columns[..] {
        [] => "*".to_owned(),
        columns => {
            let mut names: Vec<String> = columns.iter().map(|name| quoted(name, '"')).collect();
            if !columns.iter().any(|name| name == "_seq") {
                names.push("_seq".to_owned());
            }
            names.join(", ")
        }
    };
    let mut arguments = vec![quoted(&args.table, '\'')];
    arguments.extend(args.from_seq.map(|seq| format!("from_seq => {seq}")));
    arguments.extend(args.to_seq.map(|seq| format!("to_seq => {seq}")));
    arguments.extend(args.subscription.as_ref().map(|name| format!("subscription => {}", quoted(name, '\''))));
    let function = if args.follow { "tail" } else { "changes" };
    format!("SELECT {columns} FROM {function}({}){}", arguments.join(", "), condition(args, " WHERE "))
}

/// How many of the rows that are wanted one transaction has; the seq goes between both parts.
pub(super) fn count(args: &TailArgs) -> [String; 2] {
    let table = quoted(&args.table, '\'');
    let before = format!("SELECT count(*) FROM changes({table}) WHERE _seq = ");
    [before, condition(args, " AND ")]
}

fn condition(args: &TailArgs, word: &str) -> String {
    args.filter.as_ref().map_or_else(String::new, |filter| format!("{word}({filter})"))
}

/// Text in quotes.
pub(super) fn quoted(text: &str, quote: char) -> String {
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TailArgs,
    }

    fn args(line: &str) -> TailArgs {
        Line::try_parse_from(std::iter::once("tail").chain(line.split('|'))).unwrap().args
    }

    #[test]
    fn statements() {
        assert_eq!(of(&args("market.bars")), "SELECT * FROM changes('market.bars')");
        assert_eq!(
            of(&args("market.it's|--from-seq|5|--to-seq|9|--columns|a,b \"x\"|--where|a > 1")),
            "SELECT \"a\", \"b \"\"x\"\"\", _seq FROM changes('market.it''s', from_seq => 5, to_seq => 9) WHERE (a > 1)"
        );
        assert_eq!(
            of(&args("market.bars|--follow|--subscription|s|--columns|_seq,a")),
            "SELECT \"_seq\", \"a\" FROM tail('market.bars', subscription => 's')"
        );
        assert_eq!(
            count(&args("market.bars|--where|a > 1")).join("7"),
            "SELECT count(*) FROM changes('market.bars') WHERE _seq = 7 AND (a > 1)"
        );
        for wrong in ["t|--follow|--to-seq|3", "t|--acknowledge", "t|--from-seq|1|--subscription|s"] {
            assert!(Line::try_parse_from(std::iter::once("tail").chain(wrong.split('|'))).is_err(), "{wrong}");
        }
    }
}
