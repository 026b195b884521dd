//! Which seeds are run, and how one is run again.

use std::{
    cell::Cell,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

pub(crate) fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// As many as are asked for.
pub(crate) fn seeds(default: u64) -> Range<u64> {
    match variable("TAILRACE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("TAILRACE_SEEDS").unwrap_or(default),
    }
}

/// Runs something on a runtime of one thread. An error is the message of a panic.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// The same, where a panic is what is hoped for: nothing is printed.
pub(crate) fn quietly<T>(work: impl Future<Output = T>) -> Result<T, String> {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let result = run(work);
    QUIET.set(false);
    result
}

/// Runs a seed that must be well.
pub(crate) fn must<T>(test: &str, seed: u64, work: impl Future<Output = T>) -> T {
    run(work).unwrap_or_else(|failure| {
        panic!(
            "seed {seed}: {failure}\nagain: TAILRACE_SEED={seed} cargo test -p tailrace-engine --test simulation {test} \
             -- --nocapture"
        )
    })
}
