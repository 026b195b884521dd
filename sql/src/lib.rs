//! SQL surface of Tailrace.

mod error;
mod function;
mod instance;
mod pgwire;
mod procedure;
mod provider;
mod server;
mod session;
mod statement;
mod system;

pub use error::{Result, SqlError};
pub use instance::{Instance, SqlConfig};
pub use server::Server;
pub use session::{Outcome, Session, SessionFactory};
pub use statement::Statement;
