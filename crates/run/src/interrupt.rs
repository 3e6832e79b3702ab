//! Ctrl-C and termination signals: the write in progress is finished, the resume command is printed, the process ends with status 130.
//!
//! The science is never asked to stop: everything that a run keeps is written by rename or as one journal line, so between two writes
//! the process may end at any moment. Writers hold a lock; the signal's thread takes it and never gives it back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{EXIT_INTERRUPTED, Error, Result};
use crate::journal::{Event, append_to};

/// Shared by the run and the signal handler.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    state: Arc<Mutex<Option<PathBuf>>>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler for Ctrl-C, SIGTERM and SIGHUP. Call it once in a process.
    pub fn install(&self) -> Result<()> {
        let this = self.clone();
        ctrlc::set_handler(move || this.stop()).map_err(|e| Error::Internal(format!("signals can't be handled: {e}")))
    }

    /// Names the run that an interruption leaves behind.
    pub fn watch(&self, run_dir: Option<PathBuf>) {
        *self.hold() = run_dir;
    }

    /// Keeps the process alive until the guard is dropped: hold it around a write, and never twice in one thread.
    pub fn hold(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        if self.asked.swap(true, Ordering::SeqCst) {
            // The second time somebody is in a hurry: whatever is half-written has a temporary name.
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        let run = self.hold();
        eprintln!();
        match run.as_ref() {
            Some(dir) => {
                // A journal that can't be written is no reason not to stop.
                let _ = append_to(dir, &Event::Interrupted);
                eprintln!(
                    "interrupted; everything finished so far is kept. Go on with:\n    prunectl resume {}",
                    shell_quote(&dir.display().to_string())
                );
            }
            None => eprintln!("interrupted"),
        }
        std::process::exit(i32::from(EXIT_INTERRUPTED));
    }
}

/// A path as one word of a shell command.
pub fn shell_quote(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "/._-+=:@%".contains(c)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_for_the_shell() {
        assert_eq!(super::shell_quote("runs/a-1"), "runs/a-1");
        assert_eq!(super::shell_quote("it's [1]"), "'it'\\''s [1]'");
    }
}
