//! Progress: bars on a terminal, one plain line per stage elsewhere.

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// One stage that takes a while.
pub(super) struct Stage {
    bar: ProgressBar,
    label: &'static str,
}

impl Stage {
    /// A stage of `total` rows whose progress is known.
    pub(super) fn rows(label: &'static str, total: u64) -> Self {
        Self::with(label, ProgressBar::new(total), "{prefix} {wide_bar} {human_pos}/{human_len} rows")
    }

    /// A stage without a known end; [`Stage::note`] says how far it is.
    pub(super) fn open(label: &'static str) -> Self {
        let stage = Self::with(label, ProgressBar::new_spinner(), "{spinner} {prefix} {msg}");
        stage.bar.enable_steady_tick(Duration::from_millis(100));
        stage
    }

    /// Rows done.
    pub(super) fn at(&self, rows: u64) {
        self.bar.set_position(rows);
    }

    /// A word on how far it is.
    pub(super) fn note(&self, note: impl Into<Cow<'static, str>>) {
        self.bar.set_message(note);
    }

    /// Ends it with a line that stays.
    pub(super) fn done(self, result: &str) {
        self.bar.finish_and_clear();
        println!("{}: {result}", self.label);
    }

    fn with(label: &'static str, bar: ProgressBar, template: &str) -> Self {
        // The template is fixed; should it not parse, the plain style does as well.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_prefix(label);
        Self { bar, label }
    }
}
