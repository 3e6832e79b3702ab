//! `prunectl run RECIPE` and `prunectl resume RUN_DIR`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use prunectl_recipe::Sources;
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::Plan;
use prunectl_recipe::render::render;
use serde_json::json;

use crate::cli::{Compute, DONE, RecipeArgs};
use crate::commands::{print, print_json};
use crate::compile::compile;
use crate::error::{EXIT_RECIPE, Error, Result};
use crate::executor::{Executor, Finished, preflight};
use crate::files::sha256;
use crate::hub::Door;
use crate::interrupt::shell_quote;
use crate::journal::{Event, FORMAT, Start, StepDone};
use crate::lock::Lock;
use crate::models::DiskFacts;
use crate::recipes::RecipeFile;
use crate::report::figure;
use crate::rundir::{LOCK, PLAN, RECIPE, REPORT, RunDir};
use crate::session::Options;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The run directory, instead of runs/<recipe>-<n>.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Refuse to run unless everything that is read is what `prunectl lock` wrote down beside the recipe.
    #[arg(long)]
    locked: bool,
    #[command(flatten)]
    compute: Compute,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// A run directory: runs/<recipe>-<n>.
    pub run_dir: PathBuf,
}

impl Run {
    /// Runs the recipe in a new run directory.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let options = self.compute.over(options);
        let recipe = RecipeFile::open(&self.recipe.recipe)?;
        if self.locked {
            super::lock::verify(&recipe, &self.recipe.set, &options)?;
        }
        let (path, ran) = carry_out(&recipe, &self.recipe.set, self.out.as_deref(), &options)?;
        told(ran, &path, &options)
    }
}

/// Runs a recipe in a new run directory: `out`, or `runs/<recipe>-<n>`. An error before the directory is there is the outer one; the
/// inner one is the run's.
pub fn carry_out(
    recipe: &RecipeFile,
    set: &[(String, String)],
    out: Option<&Path>,
    options: &Options,
) -> Result<(PathBuf, Result<Finished>)> {
    let compiled = compile(recipe, set, options.hub.clone())?;
    let plan = accepted(compiled.result, &compiled.sources, &compiled.models, options)?;
    // A device that isn't there is told before a directory is made.
    options.device.open()?;
    let cwd = std::env::current_dir().map_err(Error::io("find", "the working directory"))?;
    let start = Start {
        format: FORMAT,
        prunectl: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: recipe.shown.clone(),
        name: recipe.name.clone(),
        base: recipe.base.clone(),
        cwd,
        set: set.to_vec(),
        device: options.device.to_string(),
        dtype: options.dtype.map(|d| d.to_string()),
        memory: options.memory,
        offline: options.offline,
        recipe_sha256: sha256(recipe.text.as_bytes()),
    };
    let lock = Lock::new(&recipe.shown, &recipe.text, &compiled.uses);
    let planned = serde_json::to_vec_pretty(&super::plan::outline(&plan, &compiled.sources, &compiled.models, options.memory))
        .map_err(|e| Error::Internal(format!("the plan can't be written as JSON: {e}")))?;
    let yaml = lock.to_yaml()?;
    let first: [(&str, &[u8]); 3] = [(RECIPE, recipe.text.as_bytes()), (LOCK, yaml.as_bytes()), (PLAN, &planned)];
    preflight(&plan, &compiled.sources, options)?;
    let dir = RunDir::create(out, &start, &first, options.interrupt.clone())?;
    let path = dir.path().to_owned();
    options.ui.note(format!("run directory {}", path.display()));
    let ran = Executor::new(&plan, &compiled.sources, options, dir, start, lock, BTreeMap::new()).and_then(Executor::run);
    Ok((path, ran))
}

/// Runs a recipe whose run directory nobody asked for: it lies among the temporary files and goes when this returns.
pub fn carry_out_and_forget(recipe: &RecipeFile, options: &Options) -> Result<Finished> {
    let temp = tempfile::Builder::new().prefix("prunectl-").tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
    // The notes of the run would name that folder.
    let inner = Options { ui: crate::ui::Ui { verbosity: options.ui.verbosity.min(-1), ..options.ui }, ..options.clone() };
    let (_, ran) = carry_out(recipe, &[], Some(&temp.path().join("run")), &inner)?;
    let finished = ran?;
    options.interrupt.watch(None);
    Ok(finished)
}

impl Resume {
    /// Goes on with a run that stopped.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let (dir, start, events) = RunDir::reopen(&self.run_dir, options.interrupt.clone())?;
        if let Some(Event::End { status, .. }) = events.last()
            && status != "error"
        {
            // The process may have been killed after the last line of the journal.
            dir.drop_checkpoints()?;
            return Err(Error::RunEnded { path: self.run_dir.clone(), status: status.clone() });
        }
        let dir = go_home(dir, &start)?;
        let path = dir.path().to_owned();
        let usage = |what: &str| Error::Damaged {
            path: path.join(crate::journal::JOURNAL),
            what: format!("it names {what} that this prunectl does not know"),
        };
        let options = Options {
            device: start.device.parse().map_err(|_| usage("a device"))?,
            memory: start.memory,
            dtype: start.dtype.as_deref().map(str::parse).transpose().map_err(|_: String| usage("a dtype"))?,
            offline: start.offline,
            hub: Door::new(options.ui, start.offline),
            ..options.clone()
        };
        let text = crate::recipes::read_text(&dir.join(RECIPE))?;
        let recipe = RecipeFile { shown: start.recipe.clone(), name: start.name.clone(), base: start.base.clone(), text };
        let compiled = compile(&recipe, &start.set, options.hub.clone())?;
        let lock = Lock::read(&dir.join(LOCK))?;
        lock.verify_texts(&Lock::new(&recipe.shown, &recipe.text, &compiled.uses), "the run began")?;
        let plan = accepted(compiled.result, &compiled.sources, &compiled.models, &options)?;
        let finished = finished_steps(events);
        let mut dir = dir;
        dir.log(&Event::Resume { finished_steps: finished.len() })?;
        options.ui.note(format!("resuming {}: {} steps are finished", path.display(), finished.len()));
        let ran = Executor::new(&plan, &compiled.sources, &options, dir, start, lock, finished).and_then(Executor::run);
        told(ran, &path, &options)
    }
}

/// Relative paths of the recipe and of its saves start where the run began.
fn go_home(dir: RunDir, start: &Start) -> Result<RunDir> {
    let here = std::env::current_dir().map_err(Error::io("find", "the working directory"))?;
    if here == start.cwd {
        return Ok(dir);
    }
    let dir = dir.absolute(&here);
    std::env::set_current_dir(&start.cwd).map_err(Error::io("go to", &start.cwd))?;
    Ok(dir)
}

/// The steps that are finished: those of the last process, on top of those that it replayed.
fn finished_steps(events: Vec<Event>) -> BTreeMap<usize, StepDone> {
    let steps = events.into_iter().filter_map(|e| match e {
        Event::Step(done) => Some((done.index, done)),
        _ => None,
    });
    steps.collect()
}

/// The plan, its warnings told; or every mistake, and every shape that a loader which must read it can't.
pub fn accepted(result: Result<Plan, Vec<Diagnostic>>, sources: &Sources, models: &DiskFacts, options: &Options) -> Result<Plan> {
    let refuse =
        |mistakes: Vec<Diagnostic>| Error::Recipe { rendered: render(&mistakes, sources, options.ui.color), errors: mistakes.len() };
    let plan = result.map_err(refuse)?;
    let refused = crate::forecast::forecast(&plan, sources, models, options.memory).refused();
    if !refused.is_empty() {
        return Err(refuse(refused));
    }
    if !plan.warnings.is_empty() {
        eprintln!("{}", render(&plan.warnings, sources, options.ui.color).trim_end());
    }
    Ok(plan)
}

/// Prints how a run ended.
fn told(ran: Result<Finished>, path: &Path, options: &Options) -> Result<u8> {
    let finished = match ran {
        Ok(finished) => finished,
        Err(e) => {
            let dir = shell_quote(&path.display().to_string());
            options.ui.note(match e.exit_status() {
                EXIT_RECIPE => {
                    format!("what was finished is kept in {dir}; `resume` would take the recipe as it was: change it and `run` it again")
                }
                _ => format!("what was finished is kept; when the cause is gone, go on with:\n    prunectl resume {dir}"),
            });
            return Err(e);
        }
    };
    if options.json {
        print_json(&json!({
            "run_dir": finished.run_dir,
            "report": finished.run_dir.join(REPORT),
            "metrics": finished.book.metrics(),
            "saved": finished.book.saves.iter().map(|s| &s.dir).collect::<Vec<_>>(),
            "failed": finished.failed,
            "summary": finished.summary,
        }))?;
    } else if options.ui.verbosity < 0 {
        let saved: Vec<&str> = finished.book.saves.iter().map(|s| s.dir.as_str()).collect();
        let shown = finished.run_dir.display().to_string();
        print(&format!("{}\n", if saved.is_empty() { shown } else { saved.join("\n") }))?;
    } else {
        print(&text(&finished))?;
    }
    if finished.failed.is_empty() {
        return DONE;
    }
    options.ui.note(format!("{} (everything is saved in {})", Error::Expect { failed: finished.failed }, finished.run_dir.display()));
    Ok(EXIT_RECIPE)
}

/// The tables at the end of a run.
fn text(finished: &Finished) -> String {
    let mut out = String::new();
    for sweep in &finished.book.sweeps {
        out += &format!("{}\n{}\n\n", sweep.name, sweep_table(sweep));
    }
    if finished.summary.is_empty() {
        let mut table = table(&["", "value"]);
        for row in finished.book.rows.iter().filter(|r| !r.name.contains('[')) {
            table.add_row([row.name.clone(), figure(row.recorded.value, crate::executor::unit_of(&row.recorded.metric))]);
        }
        if table.row_count() > 0 {
            out += &format!("{table}\n");
        }
    } else {
        let mut table = table(&["", "dense", "pruned"]);
        for row in &finished.summary {
            let shown = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| figure(x, row.unit));
            table.add_row([row.name.clone(), shown(row.dense), shown(row.pruned)]);
        }
        out += &format!("{table}\n");
    }
    for saved in &finished.book.saves {
        out += &format!("saved   {}\n", saved.dir);
    }
    out + &format!("report  {}\n", finished.run_dir.join(REPORT).display())
}

fn sweep_table(sweep: &crate::executor::SweepResult) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in sweep.cells.iter().flat_map(|c| &c.values) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let any_failed = sweep.cells.iter().any(|c| c.failed.is_some());
    let mut header: Vec<&str> = sweep.axes.iter().map(String::as_str).chain(names.iter().copied()).chain(["parameters"]).collect();
    if any_failed {
        header.push("expectation");
    }
    let mut table = table(&header);
    for cell in &sweep.cells {
        let value = |name: &&str| match cell.values.iter().rev().find(|(n, _)| n == name) {
            Some((_, v)) => figure(*v, cell.unit(name)),
            None => "–".to_owned(),
        };
        let mut row: Vec<String> = cell.labels.iter().cloned().chain(names.iter().map(value)).collect();
        row.push(cell.params.map_or_else(|| "–".to_owned(), |p| figure(p as f64, crate::report::FigureUnit::Count)));
        if any_failed {
            row.push(cell.failed.clone().map_or_else(|| "met".to_owned(), |m| format!("not met: {m}")));
        }
        table.add_row(row);
    }
    table
}

/// A plain table; figures to the right.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
