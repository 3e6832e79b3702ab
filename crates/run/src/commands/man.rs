//! `prunectl man [--out DIR]`: manual pages, made from what `--help` shows.

use std::path::PathBuf;

use clap::Args;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::session::Options;

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write prunectl.1 and a page for each command into this folder, instead of the first one on stdout.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    /// Prints the page, or writes them all.
    pub fn run(&self, mut command: clap::Command, options: &Options) -> Result<u8> {
        command.build();
        let Some(out) = &self.out else {
            print(&page(command, "prunectl")?)?;
            return DONE;
        };
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let mut written = Vec::new();
        for sub in command.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
            let name = format!("prunectl-{}", sub.get_name());
            let path = out.join(format!("{name}.1"));
            write_atomic(&path, page(sub.clone(), &name)?.as_bytes())?;
            written.push(path);
        }
        let path = out.join("prunectl.1");
        write_atomic(&path, page(command, "prunectl")?.as_bytes())?;
        written.push(path);
        if options.json {
            print_json(&written)?;
        } else {
            print(&written.iter().map(|p| format!("{}\n", p.display())).collect::<String>())?;
        }
        DONE
    }
}

fn page(command: clap::Command, name: &str) -> Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).title(name).render(&mut text).map_err(Error::io("write", "a manual page"))?;
    String::from_utf8(text).map_err(|e| Error::Internal(format!("a manual page is not text: {e}")))
}
