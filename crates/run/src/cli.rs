//! The command line: what `prunectl --help` shows, and which command it calls.

use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::commands;
use crate::error::{EXIT_DONE, Result};
use crate::hub::Door;
use crate::interrupt::Interrupt;
use crate::session::{DeviceChoice, Dtype, Options};
use crate::ui::Ui;

/// Prunes transformers from a typed recipe, and proves that what it wrote loads and runs.
#[derive(Debug, Parser)]
#[command(name = "prunectl", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub globals: Globals,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Results as JSON on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// No notes and no progress, only results, warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More notes.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Where and in what precision a run computes.
#[derive(Debug, Clone, Args)]
pub struct Compute {
    /// auto, cpu, cuda, cuda:<n> or metal.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// What is computed in, instead of the recipe's choice: f32, f64, f16 or bf16.
    #[arg(long)]
    pub dtype: Option<Dtype>,
    /// The memory that may be used, for example 2GiB: larger models stay on the disk where their steps allow it, batches are smaller.
    #[arg(long, value_parser = crate::streaming::parse_memory)]
    pub memory: Option<u64>,
    /// Never use the network.
    #[arg(long)]
    pub offline: bool,
}

/// A recipe and its parameters.
#[derive(Debug, Clone, Args)]
pub struct RecipeArgs {
    /// A recipe file, or `builtin:<name>` for one inside the program.
    pub recipe: PathBuf,
    /// Sets a `param` of the recipe; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_set)]
    pub set: Vec<(String, String)>,
}

/// `name=value` of `--set`.
pub fn parse_set(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("found `{text}`, expected NAME=VALUE, for example sparsity=40%")),
    }
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a recipe.
    Run(commands::run::Run),
    /// Go on with a run that stopped.
    Resume(commands::run::Resume),
    /// What a run would do, from configs and headers alone.
    Plan(commands::plan::PlanCommand),
    /// Measure a model, without a recipe.
    Eval(commands::eval::Eval),
    /// Score a model's units, without a recipe.
    Score(commands::score::Score),
    /// Models side by side: quality, size, speed, memory; the first is the one that the others are compared with.
    Bench(commands::bench::Bench),
    /// Check a recipe: every mistake in one go.
    Check(commands::check::Check),
    /// Rewrite recipes in the canonical spelling.
    Fmt(commands::fmt::Fmt),
    /// The manual page of an error code or of a method.
    Explain(commands::explain::Explain),
    /// Write a recipe for a model.
    New(commands::new::New),
    /// Whether criteria agree, and which beat chance, from run directories.
    Compare(commands::compare::Compare),
    /// What a model folder holds, from its headers alone.
    Inspect(commands::inspect::Inspect),
    /// Write a saved model in another format: a GGUF file for llama.cpp, or a folder of another dtype or layout.
    Export(commands::export::Export),
    /// Write down everything that a recipe reads, with its hashes, for `run --locked`.
    Lock(commands::lock::LockCommand),
    /// Every method and its parameters as JSON.
    Schema(commands::schema::Schema),
    /// Devices, features, threads and disk of this machine.
    Doctor(commands::doctor::Doctor),
    /// Completions for a shell, on stdout.
    Completions(commands::completions::Completions),
    /// Manual pages, for man(1).
    Man(commands::man::Man),
}

impl Cli {
    /// Carries the command out and returns the exit status.
    pub fn run(self, interrupt: Interrupt) -> Result<u8> {
        let verbosity = if self.globals.quiet { -1 } else { i8::try_from(self.globals.verbose).unwrap_or(i8::MAX) };
        let ui = Ui::new(verbosity);
        let hub = Door::new(ui, false);
        let options =
            Options { device: DeviceChoice::Auto, dtype: None, memory: None, offline: false, hub, json: self.globals.json, ui, interrupt };
        match self.command {
            Command::Run(c) => c.run(&options),
            Command::Resume(c) => c.run(&options),
            Command::Plan(c) => c.run(&options),
            Command::Eval(c) => c.run(&options),
            Command::Score(c) => c.run(&options),
            Command::Bench(c) => c.run(&options),
            Command::Check(c) => c.run(&options),
            Command::Fmt(c) => c.run(&options),
            Command::Explain(c) => c.run(&options),
            Command::New(c) => c.run(&options),
            Command::Compare(c) => c.run(&options),
            Command::Inspect(c) => c.run(&options),
            Command::Export(c) => c.run(&options),
            Command::Lock(c) => c.run(&options),
            Command::Schema(c) => c.run(),
            Command::Doctor(c) => c.run(&options),
            Command::Completions(c) => c.run(&mut Self::command()),
            Command::Man(c) => c.run(Self::command(), &options),
        }
    }
}

impl Compute {
    /// The options with these in them.
    pub fn over(&self, options: &Options) -> Options {
        let hub = Door::new(options.ui, self.offline);
        Options { device: self.device, dtype: self.dtype, memory: self.memory, offline: self.offline, hub, ..options.clone() }
    }
}

impl Cli {
    /// Whether results are wanted as JSON.
    pub fn json(&self) -> bool {
        self.globals.json
    }
}

/// Tells an error on stderr, and on stdout as JSON where that is wanted. Returns the exit status.
pub fn tell(error: &crate::error::Error, json: bool) -> u8 {
    let text = error.to_string();
    let status = error.exit_status();
    if json {
        // Where stdout is closed nobody listens; the status still tells.
        let _ = commands::print_json(&serde_json::json!({"error": text.trim_end(), "status": status}));
    }
    // Rendered diagnostics begin with their own `error[…]`.
    eprintln!("{}{}", if text.starts_with("error") { "" } else { "error: " }, text.trim_end());
    status
}

/// Status of a command that did what it was asked.
pub const DONE: Result<u8> = Ok(EXIT_DONE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
