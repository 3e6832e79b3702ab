//! `prunectl completions SHELL`.

use clap::Args;
use clap_complete::Shell;

use crate::cli::DONE;
use crate::commands::print;
use crate::error::{Error, Result};

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell to complete in.
    pub shell: Shell,
}

impl Completions {
    /// Prints the completions of `command`.
    pub fn run(&self, command: &mut clap::Command) -> Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, command, "prunectl", &mut text);
        print(&String::from_utf8(text).map_err(|e| Error::Internal(format!("completions are not text: {e}")))?)?;
        DONE
    }
}
