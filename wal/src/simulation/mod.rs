//! A world in memory for tests: a disk that fails and loses power, a clock that stands still, a writer that is
//! stepped by hand, and bugs that can be switched on. Everything follows from seeds.
//!
//! | file | what |
//! |---|---|
//! | `disk` | the calls of the seam: what fails, what is counted and traced |
//! | `content`, `names` | a file's bytes and a folder's entries: what is seen, what is durable, what a crash keeps |
//! | `fault` | classes of faults and their counts |
//! | `clock` | time and random numbers |
//! | `stepper` | the log's writer, batch by batch |
//! | `planted` | bugs |
//! | `fuzz` | readers of hostile bytes, for fuzz targets |

mod clock;
mod content;
mod disk;
mod fault;
pub mod fuzz;
mod names;
mod planted;
mod stepper;

pub use clock::SimulatedClock;
pub use disk::{Call, CallKind, Observer, SimulatedDisk};
pub use fault::{Failure, FaultClass, FaultCounts};
pub use planted::PlantedBug;
pub use stepper::Stepper;

#[cfg(test)]
mod tests;
