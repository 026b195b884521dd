//! How far a long statement is: a bar on a terminal, from figures that a second connection asks for.

use std::{future::Future, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Answer, ClientArgs, ClientError, Node};

/// Between two questions.
const POLL: Duration = Duration::from_millis(250);

/// What is asked meanwhile.
pub(crate) struct Polled {
    /// Answers with figures.
    pub(crate) sql: String,
    /// Of an answer: how far it is, in percent, and a word on it. `None`: nothing is known yet.
    pub(crate) read: fn(&Answer) -> Option<(f64, String)>,
}

/// Runs `work`, with a bar on standard error where that is a terminal and the output is for people. The bar is a courtesy: what
/// goes wrong with it is not told.
pub(crate) async fn with_progress<T>(
    args: &ClientArgs,
    label: &'static str,
    polled: Polled,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    if args.json || !std::io::stderr().is_terminal() {
        return work.await;
    }
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    // The template is fixed; should it not parse, the plain style does as well.
    let template = "{prefix} {wide_bar} {percent}% {msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(label);
    let shown = async {
        let Ok(node) = Node::connect(args, "progress", None).await else { return std::future::pending().await };
        loop {
            if let Some((percent, word)) = node.ask_to_the_end(&polled.sql).await.ok().as_ref().and_then(polled.read) {
                bar.set_position((percent.clamp(0.0, 100.0) * 10.0) as u64);
                bar.set_message(word);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = shown => Err(ClientError::Interrupted),
    };
    bar.finish_and_clear();
    result
}
