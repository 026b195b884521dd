//! `docs/replication.md`, typed as it stands there: its blocks are run in order in an empty folder, by the real binary, a
//! real shell and the real psql, and what they print is compared with what the page shows.
//!
//! | block | what is done with it |
//! |---|---|
//! | `sh` | typed into a shell. `tailrace serve` keeps running; where that node runs already, Ctrl-C comes first |
//! | `sql`, whose first line is `-- siteA` | typed into a psql of its own, connected to that node. One that only reads is repeated until it shows what the page shows: a replica follows in its own time |
//! | `text` | what the block before it printed |
//!
//! Other blocks are only read. In a `text` block, `~` before a value (a cell of a table, or a word) marks an example: there
//! may be another of the same kind, a number for a number, a time for a time, an address, an id, a text. Nodes listen on
//! free ports here: the page's are translated. Where psql is not installed, nothing is tested, and that is said.
//!
//! `TUTORIAL_PAGE=write cargo test --test it tutorial_page` runs the page and writes what was printed into it, with `~`
//! where it was, and in blocks that were empty before times and addresses.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{PATIENCE, tailrace};

/// How long a block that only reads is repeated before its output is written into the page.
const SETTLED: Duration = Duration::from_secs(3);

#[test]
fn every_block_of_the_page_prints_what_the_page_shows() {
    if Command::new("psql").arg("--version").output().is_err() {
        println!("SKIPPED: psql is not installed, and docs/replication.md was not tested");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/replication.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let blocks = blocks(&page);
    let is_writing = std::env::var("TUTORIAL_PAGE").is_ok_and(|value| value == "write");
    let mut desk = Desk::new();
    let mut written = Page::new(&page);
    let (mut run, mut compared) = (0, 0);
    for (index, block) in blocks.iter().enumerate() {
        let shown = blocks.get(index + 1).filter(|next| next.language == "text");
        let printed = match block.language {
            "sh" => desk.shell(block, shown),
            "sql" => desk.sql(block, shown, if is_writing { SETTLED } else { PATIENCE }),
            "text" | "toml" => continue,
            other => panic!("line {}: a block of {other:?} is neither run nor read", block.line),
        };
        run += 1;
        let Some(shown) = shown else {
            let failed = printed.lines().any(|line| line.starts_with("ERROR:") || line.starts_with("FATAL:"));
            assert!(!failed, "line {} of the page: it failed\n{}\n{printed}\n{}", block.line, block.text, desk.logs());
            continue;
        };
        compared += 1;
        if is_writing {
            written.replace(shown, &marked(&shown.text, &printed));
        } else if let Err(line) = compare(&shown.text, &printed) {
            panic!(
                "line {} of the page: {}\n--- it shows\n{}--- printed was\n{printed}--- first difference: {line}\n{}",
                block.line,
                block.text,
                shown.text,
                desk.logs()
            );
        }
    }
    println!("{run} blocks were run, the output of {compared} was compared");
    assert!(run > 20 && compared > 20, "the page was not understood");
    if is_writing {
        std::fs::write(path, written.text()).unwrap();
    }
}

/// A fenced block of the page.
struct Block<'a> {
    language: &'a str,
    text: String,
    /// Number of its first line in the page, from 0; its fence is the one before, whose number from 1 this is, too.
    line: usize,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut open): (Vec<Block<'_>>, Option<Block<'_>>) = (Vec::new(), None);
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some(Block { language, text: String::new(), line: number + 1 }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block has no end");
    blocks
}

/// The page's lines, of which blocks are replaced.
struct Page<'a> {
    lines: Vec<&'a str>,
    /// By the first line of what is replaced.
    replaced: HashMap<usize, (usize, String)>,
}

impl<'a> Page<'a> {
    fn new(page: &'a str) -> Self {
        Self { lines: page.lines().collect(), replaced: HashMap::new() }
    }

    fn replace(&mut self, block: &Block<'_>, text: &str) {
        self.replaced.insert(block.line, (block.text.lines().count(), text.to_owned()));
    }

    fn text(&self) -> String {
        let (mut text, mut line) = (String::new(), 0);
        while line < self.lines.len() {
            if let Some((lines, replacement)) = self.replaced.get(&line) {
                text.push_str(replacement);
                line += lines;
            }
            text.extend([self.lines[line], "\n"]);
            line += 1;
        }
        text
    }
}

/// The reader's terminals: a folder, and the nodes that run in it.
struct Desk {
    folder: tempfile::TempDir,
    nodes: HashMap<String, Child>,
    /// Ports of the page, and those that stand for them here.
    ports: Vec<(u16, u16)>,
    /// Of each node's pgwire, as the page has it.
    pgwire: HashMap<String, u16>,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), nodes: HashMap::new(), ports: Vec::new(), pgwire: HashMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shell(&mut self, block: &Block<'_>, shown: Option<&Block<'_>>) -> String {
        let script: String = block.text.lines().filter(|line| !line.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
        if let Some(config) = script.trim().strip_prefix("tailrace serve --config ") {
            let name = config.split('/').next().unwrap().to_owned();
            return self.serve(&name, config, shown.unwrap_or_else(|| panic!("line {}: what it says?", block.line)));
        }
        let binary = Path::new(env!("CARGO_BIN_EXE_tailrace")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-e", "-c", &format!("exec 2>&1\n{}", self.translated(&script))]).env("PATH", path);
        let output = bash.current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap();
        let printed = self.translated_back(&String::from_utf8(output.stdout).unwrap());
        assert!(
            output.status.success(),
            "line {} of the page: it failed\n{script}\n{printed}{}",
            block.line,
            self.logs()
        );
        printed
    }

    /// Starts a node; learns which ports stand for those that the page shows.
    fn serve(&mut self, name: &str, config: &str, shown: &Block<'_>) -> String {
        if let Some(mut running) = self.nodes.remove(name) {
            interrupt(&mut running, name);
        }
        let mut command = tailrace();
        let settings = std::fs::read_to_string(self.path(config)).unwrap();
        let listeners: Vec<(&str, u16)> = shown.text.lines().map(listening).collect();
        for (what, port) in &listeners {
            let known = self.ports.iter().find(|(page, _)| page == port).map_or(0, |(_, real)| *real);
            let key = format!("TAILRACE_LISTEN__{}", what.to_uppercase());
            command.env(key, format!("127.0.0.1:{known}"));
        }
        assert!(listeners.len() == 1 + usize::from(settings.contains("\n[replication.primary]")), "{}", shown.text);
        // Several nodes on one small disk; the page's readers have more.
        command.env("TAILRACE_WAL__RESERVE_BYTES", "1MiB");
        command.args(["serve", "--config", config]).current_dir(self.folder.path());
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        self.nodes.insert(name.to_owned(), process);
        for (what, port) in listeners {
            let line = lines.next().unwrap_or_else(|| panic!("{name} did not start\n{}", self.logs())).unwrap();
            let (found, real) = listening(&line);
            assert_eq!(found, what, "{name}");
            if !self.ports.contains(&(port, real)) {
                self.ports.push((port, real));
            }
            if what == "pgwire" {
                self.pgwire.insert(name.to_owned(), port);
            }
        }
        shown.text.clone()
    }

    fn sql(&self, block: &Block<'_>, shown: Option<&Block<'_>>, patience: Duration) -> String {
        let (site, script) = block.text.split_once('\n').unwrap();
        let name = site.strip_prefix("-- ").unwrap_or_else(|| panic!("line {}: on which node?", block.line));
        let port = self.pgwire.get(name).unwrap_or_else(|| panic!("line {}: {name:?} does not run", block.line));
        let statements = script.replace("\\gx", ";");
        let only_reads = statements
            .split(';')
            .map(str::trim)
            .all(|statement| statement.is_empty() || statement.starts_with("SELECT"));
        let deadline = Instant::now() + patience;
        loop {
            let printed = self.psql(&self.translated(&port.to_string()), script);
            let is_wanted = shown.is_none_or(|shown| compare(&shown.text, &printed).is_ok());
            if is_wanted || !only_reads || Instant::now() > deadline {
                return printed;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn psql(&self, port: &str, script: &str) -> String {
        let mut psql = Command::new("bash");
        psql.args(["-c", "exec psql -X -h 127.0.0.1 -U test -p \"$0\" tailrace 2>&1", port]);
        psql.env("LC_ALL", "C.UTF-8").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.spawn().unwrap();
        psql.stdin.take().unwrap().write_all(self.translated(script).as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        self.translated_back(&String::from_utf8(output.stdout).unwrap())
    }

    fn translated(&self, text: &str) -> String {
        numbers(text, |_, number| self.ports.iter().find(|(page, _)| *page == number).map(|(_, real)| *real))
    }

    fn translated_back(&self, text: &str) -> String {
        let text = numbers(text, |before, number| {
            let port = self.ports.iter().find(|(_, real)| *real == number && before.ends_with(':'));
            port.map(|(page, _)| *page)
        });
        text.replace(&*self.folder.path().to_string_lossy(), ".")
    }

    fn logs(&self) -> String {
        let log = |name: &String| {
            let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("--- {name}\n{}\n", last.join("\n"))
        };
        self.nodes.keys().map(log).collect()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Ctrl-C; the node must end well.
fn interrupt(node: &mut Child, name: &str) {
    let sent = Command::new("kill").arg("-INT").arg(node.id().to_string()).status().unwrap();
    assert!(sent.success());
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = node.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0), "{name} after Ctrl-C");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = node.kill();
    panic!("{name} did not end after Ctrl-C");
}

/// Replaces numbers; what is given of each is the text before it.
fn numbers(text: &str, replacement: impl Fn(&str, u16) -> Option<u16>) -> String {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let (number, after) = from.split_at(from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len()));
        replaced.push_str(before);
        match number.parse().ok().and_then(|number| replacement(&replaced, number)) {
            Some(other) => replaced.push_str(&other.to_string()),
            None => replaced.push_str(number),
        }
        rest = after;
    }
    replaced + rest
}

/// `listening pgwire 127.0.0.1:5442`
fn listening(line: &str) -> (&str, u16) {
    let words = line.strip_prefix("listening ").and_then(|rest| rest.split_once(' '));
    let (what, address) = words.unwrap_or_else(|| panic!("unexpected line {line:?}"));
    (what, address.parse::<SocketAddr>().unwrap_or_else(|error| panic!("{line:?}: {error}")).port())
}

/// `Err`: the first line that differs.
fn compare(shown: &str, printed: &str) -> Result<(), String> {
    let mut printed = printed.lines().filter(|line| !line.trim().is_empty());
    for shown in shown.lines().filter(|line| !line.trim().is_empty()) {
        match printed.next() {
            Some(line) if same_line(shown, line) => {}
            Some(line) => return Err(format!("{shown:?}, printed {line:?}")),
            None => return Err(format!("{shown:?}, nothing was printed")),
        }
    }
    printed.next().map_or(Ok(()), |line| Err(format!("nothing, printed {line:?}")))
}

fn same_line(shown: &str, printed: &str) -> bool {
    if let (Some(shown), Some(printed)) = (rule(shown), rule(printed)) {
        return shown == printed;
    }
    let (shown, printed): (Vec<&str>, Vec<&str>) = (shown.split('|').collect(), printed.split('|').collect());
    let is_table = shown.len() > 1 || shown[0].starts_with(' ') || shown[0].starts_with('~');
    shown.len() == printed.len()
        && shown.iter().zip(printed).all(|(shown, printed)| match shown.trim().strip_prefix('~') {
            Some(example) if is_table => kind(example.trim()) == kind(printed.trim()),
            _ => same_words(shown, printed),
        })
}

fn same_words(shown: &str, printed: &str) -> bool {
    let mut printed = printed.split_whitespace();
    for word in shown.split_whitespace() {
        let Some(found) = printed.next() else { return false };
        let same = match word.strip_prefix('~') {
            Some(example) => kind(bare(example)) == kind(bare(found)),
            None => word == found,
        };
        if !same {
            return false;
        }
    }
    printed.next().is_none()
}

fn bare(word: &str) -> &str {
    word.trim_end_matches([',', ';', '.', ':', ')'])
}

/// What tells one record from the next, without its width.
fn rule(line: &str) -> Option<String> {
    let is_rule = line.starts_with("-[ RECORD") || (line.contains('-') && line.chars().all(|c| "-+".contains(c)));
    is_rule.then(|| line.replace(['-', '+', ' '], ""))
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Number,
    Time,
    Address,
    Id,
    Text,
}

fn kind(value: &str) -> Kind {
    let bytes = value.as_bytes();
    if value.is_empty() {
        Kind::Nothing
    } else if value.parse::<SocketAddr>().is_ok() {
        Kind::Address
    } else if bytes.len() >= 16 && bytes.iter().all(u8::is_ascii_hexdigit) {
        Kind::Id
    } else if bytes.len() >= 19 && bytes[4] == b'-' && bytes[13] == b':' {
        Kind::Time
    } else if value.parse::<f64>().is_ok() {
        Kind::Number
    } else {
        Kind::Text
    }
}

/// What was printed, unless it is what the page shows: with `~` in the cells where the page had one, and where it had
/// nothing yet, before times and addresses.
fn marked(shown: &str, printed: &str) -> String {
    if compare(shown, printed).is_ok() {
        return shown.to_owned();
    }
    let is_new = shown.is_empty();
    let mut shown = shown.lines();
    let mut text = String::new();
    for line in printed.trim_end().lines() {
        let before = shown.next().unwrap_or_default();
        let is_table = line.contains('|') || line.starts_with(' ');
        if !is_table && rule(line).is_none() && same_line(before, line) {
            text.extend([before, "\n"]);
            continue;
        }
        let before: Vec<&str> = before.split('|').collect();
        let cells = line.split('|').enumerate().map(|(index, cell)| {
            let value = cell.trim();
            let was = before.get(index).is_some_and(|cell| cell.trim().starts_with('~'));
            let varies = is_new && matches!(kind(value), Kind::Time | Kind::Address);
            if !is_table || value.is_empty() || !(was || varies) {
                return cell.to_owned();
            }
            // It takes the place of the space before the value, so that columns stay in line.
            let at = cell.find(value).unwrap_or_default();
            format!("{}~{}", &cell[..at.saturating_sub(1)], &cell[at..])
        });
        text.push_str(cells.collect::<Vec<_>>().join("|").trim_end());
        text.push('\n');
    }
    text
}

#[test]
fn what_is_marked_may_differ_in_value_only() {
    let shown = " task_id |   create_time\n---------+-----\n       1 |~2026-11-22 08:41:07\n(1 row)\n";
    for (printed, same) in [
        (" task_id | create_time\n----+-----------\n  1 | 2027-01-02 18:41:07.123456\n(1 row)\n\n", true),
        (" task_id | create_time\n----+-----------\n  2 | 2027-01-02 18:41:07.123456\n(1 row)\n", false),
        (" task_id | create_time\n----+-----------\n  1 | \n(1 row)\n", false),
        (" task_id | create_time\n----+-----------\n  1 | yesterday\n(1 row)\n", false),
        (" task_id | create_time\n----+-----------\n(0 rows)\n", false),
    ] {
        assert_eq!(compare(shown, printed).is_ok(), same, "{printed}");
    }
    assert!(same_line("committed at ~42, epoch ~0123456789abcdef)", "committed at 7, epoch ffffffffffffffff)"));
    assert!(!same_line("committed at ~42, epoch", "committed at yesterday, epoch"));
    assert!(same_line("-[ RECORD 1 ]-+---", "-[ RECORD 1 ]------+-"));
    assert!(!same_line("-[ RECORD 1 ]-+---", "-[ RECORD 2 ]-+---"));
    let printed = " secs |          at\n------+---\n    2 | 2026-11-22 08:41:07\n\n";
    assert_eq!(marked("", printed), " secs |          at\n------+---\n    2 |~2026-11-22 08:41:07\n");
    assert_eq!(marked(" x\n---\n ~3 | 1\n", printed), " secs |          at\n------+---\n   ~2 | 2026-11-22 08:41:07\n");
    let shown = " secs |          at\n------+---\n   ~7 |~2025-01-01 00:00:00\n";
    assert_eq!(marked(shown, printed), shown);
}
