//! `prunectl check RECIPE…`: every mistake of each recipe in one go.

use std::path::PathBuf;

use clap::Args;
use prunectl_recipe::diagnostic::Severity;
use prunectl_recipe::render::{locate, render};

use crate::cli::{DONE, parse_set};
use crate::commands::print_json;
use crate::compile::compile;
use crate::error::{EXIT_RECIPE, Result};
use crate::forecast::forecast;
use crate::hub::Door;
use crate::recipes::RecipeFile;
use crate::session::Options;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Recipe files, or `builtin:<name>`.
    #[arg(required = true)]
    pub recipes: Vec<PathBuf>,
    /// Sets a `param`; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_set)]
    pub set: Vec<(String, String)>,
}

impl Check {
    /// Prints what is wrong: to stderr, or as a JSON list to stdout.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let mut located = Vec::new();
        let mut failed = false;
        for path in &self.recipes {
            let recipe = RecipeFile::open(path)?;
            let compiled = compile(&recipe, &self.set, Door::cache_only())?;
            let diagnostics = &match &compiled.result {
                Ok(plan) => [forecast(plan, &compiled.sources, &compiled.models, None).refused(), plan.warnings.clone()].concat(),
                Err(mistakes) => mistakes.clone(),
            };
            let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
            failed |= errors > 0;
            if options.json {
                located.extend(locate(diagnostics, &compiled.sources));
                continue;
            }
            if !diagnostics.is_empty() {
                eprintln!("{}", render(diagnostics, &compiled.sources, options.ui.color).trim_end());
            }
            let warnings = diagnostics.len() - errors;
            options.ui.note(match (errors, warnings) {
                (0, 0) => format!("{}: no mistakes", recipe.shown),
                (0, w) => format!("{}: no mistakes, {w} warning(s)", recipe.shown),
                (e, 0) => format!("{}: {e} mistake(s)", recipe.shown),
                (e, w) => format!("{}: {e} mistake(s), {w} warning(s)", recipe.shown),
            });
        }
        if options.json {
            print_json(&located)?;
        }
        if failed { Ok(EXIT_RECIPE) } else { DONE }
    }
}
