//! `prunectl fmt [--check] RECIPE…`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use prunectl_recipe::render::render;
use prunectl_recipe::{Sources, format::format};
use serde_json::json;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::error::{EXIT_RECIPE, Error, Result};
use crate::files::write_atomic;
use crate::recipes::read_text;
use crate::session::Options;

/// Arguments of `fmt`.
#[derive(Debug, Args)]
pub struct Fmt {
    /// Recipe files; `-` formats stdin to stdout.
    #[arg(required = true)]
    pub recipes: Vec<PathBuf>,
    /// Changes nothing; names the files that would change, with status 1 if there are any.
    #[arg(long)]
    pub check: bool,
}

impl Fmt {
    /// Rewrites the files in the canonical spelling.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let mut differ = false;
        let mut told = Vec::new();
        for path in &self.recipes {
            if path == Path::new("-") {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map_err(Error::io("read", "stdin"))?;
                let formatted = formatted(&text, "stdin", options)?;
                if options.json {
                    told.push(json!({"path": "-", "changed": formatted != text, "text": formatted}));
                } else if !self.check {
                    print(&formatted)?;
                }
                differ |= formatted != text;
                continue;
            }
            let text = read_text(path)?;
            let formatted = formatted(&text, &path.display().to_string(), options)?;
            if options.json {
                told.push(json!({"path": path, "changed": formatted != text}));
            }
            if formatted == text {
                continue;
            }
            differ = true;
            if self.check {
                if options.json {
                    continue;
                }
                print(&format!("{}\n", path.display()))?;
            } else {
                write_atomic(path, formatted.as_bytes())?;
                options.ui.note(format!("formatted {}", path.display()));
            }
        }
        if options.json {
            print_json(&told)?;
        }
        if self.check && differ {
            options.ui.note("not formatted; run `prunectl fmt` on these files");
            return Ok(EXIT_RECIPE);
        }
        DONE
    }
}

fn formatted(text: &str, name: &str, options: &Options) -> Result<String> {
    format(text).map_err(|mistakes| {
        let mut sources = Sources::default();
        sources.add(name, text);
        Error::Recipe { rendered: render(&mistakes, &sources, options.ui.color), errors: mistakes.len() }
    })
}
