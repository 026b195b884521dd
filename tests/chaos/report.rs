//! Counters, times and findings of a run.

use std::{collections::BTreeMap, fmt, sync::Mutex, time::Duration};

/// Findings that are kept; more would only hide the first.
const VIOLATIONS_MAX: usize = 50;

/// What happened, counted by name.
#[derive(Debug, Default)]
pub(crate) struct Report {
    operations: Mutex<BTreeMap<(String, String), u64>>,
    faults: Mutex<BTreeMap<String, u64>>,
    spans: Mutex<BTreeMap<String, Vec<Duration>>>,
    highest: Mutex<BTreeMap<String, u64>>,
    refusals: Mutex<BTreeMap<String, String>>,
    notes: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
}

impl Report {
    pub(crate) fn operation(&self, kind: &str, outcome: &str) {
        *self.operations.lock().unwrap().entry((kind.to_owned(), outcome.to_owned())).or_default() += 1;
    }

    /// Keeps the words of the first refusal with each SQLSTATE.
    pub(crate) fn refusal(&self, state: &str, message: &str) {
        self.refusals.lock().unwrap().entry(state.to_owned()).or_insert_with(|| message.to_owned());
    }

    pub(crate) fn fault(&self, kind: &str) {
        *self.faults.lock().unwrap().entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn span(&self, what: &str, span: Duration) {
        self.spans.lock().unwrap().entry(what.to_owned()).or_default().push(span);
    }

    /// Keeps the highest of some figures.
    pub(crate) fn highest(&self, what: &str, figure: u64) {
        let mut highest = self.highest.lock().unwrap();
        let kept = highest.entry(what.to_owned()).or_default();
        *kept = figure.max(*kept);
    }

    pub(crate) fn note(&self, note: String) {
        self.notes.lock().unwrap().push(note);
    }

    /// A promise that was broken.
    pub(crate) fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < VIOLATIONS_MAX {
            println!("VIOLATION: {what}");
            violations.push(what);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operations:")?;
        let operations = self.operations.lock().unwrap();
        let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((kind, outcome), count) in &*operations {
            kinds.entry(kind).or_default().push(format!("{outcome} {count}"));
        }
        for (kind, outcomes) in kinds {
            writeln!(f, "  {kind}: {}", outcomes.join(", "))?;
        }
        let faults: Vec<_> =
            self.faults.lock().unwrap().iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        writeln!(f, "times in ms (count, median, longest):")?;
        for (what, spans) in &mut *self.spans.lock().unwrap() {
            spans.sort();
            let (median, longest) = (spans[spans.len() / 2], spans[spans.len() - 1]);
            writeln!(f, "  {what}: {}, {}, {}", spans.len(), median.as_millis(), longest.as_millis())?;
        }
        for (state, message) in &*self.refusals.lock().unwrap() {
            writeln!(f, "first refused {state}: {message}")?;
        }
        for (what, figure) in &*self.highest.lock().unwrap() {
            writeln!(f, "highest {what}: {figure}")?;
        }
        for note in &*self.notes.lock().unwrap() {
            writeln!(f, "{note}")?;
        }
        write!(f, "violations: {}", self.violations.lock().unwrap().len())
    }
}
