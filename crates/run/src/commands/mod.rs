//! One file for each command: its arguments, and what it does.

pub mod bench;
pub mod check;
pub mod compare;
pub mod completions;
pub mod doctor;
pub mod draft;
pub mod eval;
pub mod explain;
pub mod export;
pub mod fmt;
mod folder;
pub mod inspect;
pub mod lock;
pub mod man;
pub mod new;
pub mod plan;
pub mod run;
pub mod schema;
pub mod score;

use std::io::Write;

use crate::error::{Error, Result};

/// Writes a result to stdout. A reader that went away (`prunectl … | head`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", "stdout")(e)),
        _ => Ok(()),
    }
}

/// Writes JSON to stdout, indented.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(format!("a result can't be written as JSON: {e}")))?;
    print(&format!("{text}\n"))
}
