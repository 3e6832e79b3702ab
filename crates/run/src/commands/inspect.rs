//! `prunectl inspect DIR`: what a model folder holds, from its headers alone.

use std::path::PathBuf;

use clap::Args;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::error::Result;
use crate::inspect::inspect;
use crate::session::Options;

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A model folder: config.json and safetensors files.
    pub dir: PathBuf,
}

impl Inspect {
    /// Prints shapes, what was removed by whom, sizes and loaders.
    pub fn run(&self, options: &Options) -> Result<u8> {
        super::folder::check(&self.dir)?;
        let found = inspect(&self.dir)?;
        if options.json {
            print_json(&found)?
        } else {
            print(&found.text())?
        }
        DONE
    }
}
