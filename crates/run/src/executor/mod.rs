//! The executor: a plan's steps, one after the other, each journalled when everything that it wrote is on the disk.
//!
//! A step is either computed or, in a resumed run, replayed from what it wrote before. Steps are numbered in the order in which a run
//! without interruption meets them, so a number names the same step in the run and in its resumption.

mod adapters;
mod adopt;
mod analyses;
mod book;
mod bound;
mod imitation;
mod inner;
mod inputs;
mod measure;
mod plain;
mod preflight;
mod proxies;
mod pruning;
mod reconstruct;
mod report;
mod saving;
mod state;
mod store;
mod summary;
mod training;

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Device;
use indicatif::ProgressBar;
use prunectl_prune::Progress;
use prunectl_recipe::plan::{Cell, Plan, Span, Step, StepKind};
use prunectl_recipe::{Sources, source::Source};

use crate::data::DataStore;
use crate::error::{Error, Result};
use crate::journal::{Event, Start, StepDone};
use crate::lock::Lock;
use crate::rundir::{LOCK, METRICS, REPORT, RunDir};
use crate::session::{Options, device_name};

pub use book::{Book, Size, SweepResult, plain_name, unit_of};
pub use inputs::longest_of;
pub use preflight::{data_of, others_of, preflight};
use state::State;
pub use state::{model_of, to_sites};
pub use store::named_scores;
pub(crate) use store::{from_bytes, to_bytes};

/// What a step left behind.
#[derive(Debug, Default)]
struct Outcome {
    /// Files of the run directory with their hashes.
    files: Vec<(String, String)>,
    /// What a resumed run needs besides files.
    result: serde_json::Value,
    /// Why the result was not computed, where it was not.
    reused: Option<String>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// Everything that it found out.
    pub book: Book,
    /// Where.
    pub run_dir: std::path::PathBuf,
    /// Messages of expectations that were not met.
    pub failed: Vec<String>,
    /// Dense beside pruned.
    pub summary: Vec<crate::report::SummaryRow>,
}

/// A run in progress.
pub struct Executor<'a> {
    plan: &'a Plan,
    sources: &'a Sources,
    options: &'a Options,
    device: Device,
    dir: RunDir,
    start: Start,
    data: DataStore,
    lock: Lock,
    state: State,
    /// Metrics by name, also without the suffix of a round or cell; they outlive a sweep's cells.
    metrics: BTreeMap<String, f64>,
    /// Values of each example, for paired comparison.
    examples: BTreeMap<String, Vec<f64>>,
    book: Book,
    /// End states of sweeps' cells that an `adopt` asks for.
    cells: BTreeMap<String, Vec<adopt::EndOfCell>>,
    finished: BTreeMap<usize, StepDone>,
    next: usize,
}

/// Whether the steps go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    /// An expectation was not met, and the next step would change a model.
    Stop,
}

impl<'a> Executor<'a> {
    /// A run of `plan` in `dir`. `finished` are the steps that an earlier process journalled.
    pub fn new(
        plan: &'a Plan,
        sources: &'a Sources,
        options: &'a Options,
        dir: RunDir,
        start: Start,
        lock: Lock,
        finished: BTreeMap<usize, StepDone>,
    ) -> Result<Self> {
        let device = options.device.open()?;
        if let Some(gpu) = options.device.first_choice().filter(|_| device.is_cpu()) {
            options.ui.note(format!("no {gpu} can be used here: running on the CPU (`prunectl doctor` says why)"));
        }
        Ok(Self {
            plan,
            sources,
            options,
            device,
            dir,
            start,
            data: DataStore::new(&plan.data, &options.hub),
            lock,
            state: State::default(),
            metrics: BTreeMap::new(),
            examples: BTreeMap::new(),
            book: Book { warnings: plan.warnings.iter().map(|d| d.message.clone()).collect(), ..Book::default() },
            cells: BTreeMap::new(),
            finished,
            next: 0,
        })
    }

    /// Carries the plan out. Whatever happens, what was found out is written; a failed expectation is no error here.
    pub fn run(mut self) -> Result<Finished> {
        let plan = self.plan;
        let mut failed = Vec::new();
        let ran = self.steps(&plan.steps, &mut failed);
        let ran = ran.and_then(|_| self.sizes());
        let written = self.write_results();
        match ran.and(written) {
            Ok(()) => {}
            Err(e) => {
                let message = Some(e.to_string());
                // A full disk may keep the journal from growing, too; the first error is the one to tell.
                let _ = self.dir.log(&Event::End { status: "error".to_owned(), message });
                return Err(e);
            }
        }
        let summary = self.summary()?;
        self.dir.write(REPORT, crate::report::render(&self.report(&summary, &failed)?).as_bytes())?;
        let status = if failed.is_empty() { "done" } else { "expect" };
        self.dir.log(&Event::End { status: status.to_owned(), message: (!failed.is_empty()).then(|| failed.join("; ")) })?;
        self.dir.drop_checkpoints()?;
        Ok(Finished { run_dir: self.dir.path().to_owned(), book: self.book, failed, summary })
    }

    fn steps(&mut self, steps: &[Step], failed: &mut Vec<String>) -> Result<Flow> {
        for step in steps {
            if !failed.is_empty() && changes_a_model(&step.kind) {
                self.options.ui.note(format!("line {}: not done, because an expectation was not met", step.line));
                return Ok(Flow::Stop);
            }
            match &step.kind {
                StepKind::Repeat { rounds, .. } => {
                    for round in rounds {
                        if self.steps(round, failed)? == Flow::Stop {
                            return Ok(Flow::Stop);
                        }
                    }
                }
                StepKind::Sweep { axes, cells } => self.sweep(step, axes, cells)?,
                StepKind::Expect { .. } => {
                    if let Some(message) = self.leaf(step, Self::expect)? {
                        failed.push(message);
                    }
                }
                _ => {
                    self.leaf(step, |this, step, done| this.step(step, done).map(|o| (o, ())))?;
                }
            }
        }
        Ok(Flow::On)
    }

    /// Every cell starts from the state on entry, and so does what follows.
    fn sweep(&mut self, step: &Step, axes: &[String], cells: &[Cell]) -> Result<()> {
        let entry = self.state.clone();
        let adopted = adopts(&self.plan.steps, &step.name);
        let mut results = Vec::with_capacity(cells.len());
        let mut ends = Vec::new();
        let mut spans = Vec::with_capacity(cells.len());
        for (i, cell) in cells.iter().enumerate() {
            let labels: Vec<String> = cell.labels.iter().map(|(_, value)| value.clone()).collect();
            self.options.ui.note(format!("cell {} of {}: {}", i + 1, cells.len(), labels.join(", ")));
            self.state = entry.clone();
            let first = self.book.rows.len();
            let mut failed = Vec::new();
            self.steps(&cell.steps, &mut failed)?;
            let rows = self.book.rows.get(first..).unwrap_or_default();
            let values: Vec<(String, f64)> = rows.iter().map(|r| (book::plain_name(&r.name).to_owned(), r.recorded.value)).collect();
            let units = rows.iter().map(|r| (book::plain_name(&r.name).to_owned(), unit_of(&r.recorded.metric))).collect();
            let params =
                self.state.models.values().find(|m| m.changed).or(self.state.models.values().next()).map(|m| m.model.parameter_count());
            if let Some(message) = failed.first() {
                self.options.ui.note(format!("  expectation not met: {message}"));
            }
            if adopted {
                let models = self.state.models.clone();
                ends.push(adopt::EndOfCell {
                    labels: labels.clone(),
                    models,
                    metrics: values.iter().cloned().collect(),
                    failed: !failed.is_empty(),
                });
            }
            results.push(book::CellResult { labels, values, units, params, failed: failed.first().cloned() });
            spans.push(first..self.book.rows.len());
        }
        self.state = entry;
        let proxies = self.proxies(spans, &mut results, &mut ends)?;
        if adopted {
            self.cells.insert(step.name.clone(), ends);
        }
        self.book.sweeps.push(book::SweepResult { name: step.name.clone(), axes: axes.to_vec(), cells: results, proxies });
        self.dir.write_json(METRICS, &self.book.metrics())?;
        Ok(())
    }

    /// Decides the votes of a sweep's cells, and says how each zero-cost proxy ranks them beside the other metrics.
    fn proxies(
        &mut self,
        spans: Vec<std::ops::Range<usize>>,
        results: &mut [book::CellResult],
        ends: &mut [adopt::EndOfCell],
    ) -> Result<Vec<proxies::Proxy>> {
        let mut cells = proxies::Cells { rows: &mut self.book.rows, spans };
        cells.decide(results);
        let ranked = cells.ranked();
        for (end, cell) in ends.iter_mut().zip(results.iter()) {
            end.metrics.extend(cell.values.iter().cloned());
        }
        for row in self.book.rows.iter().filter(|r| !r.recorded.details.is_empty()) {
            self.metrics.insert(book::plain_name(&row.name).to_owned(), row.recorded.value);
            self.metrics.insert(row.name.clone(), row.recorded.value);
        }
        for proxy in &ranked {
            self.options.ui.note(format!("  {}", proxy.in_words()));
        }
        Ok(ranked)
    }

    /// One step: computed or replayed, then journalled.
    fn leaf<T>(&mut self, step: &Step, work: impl FnOnce(&mut Self, &Step, Option<&StepDone>) -> Result<(Outcome, T)>) -> Result<T> {
        let index = self.next;
        self.next += 1;
        let kind = kind_name(&step.kind);
        let done = self.finished.remove(&index);
        if let Some(d) = &done
            && (d.kind != kind || d.name != step.name)
        {
            let what = format!("step {index} is `{} {}`, the recipe has `{kind} {}`", d.kind, d.name, step.name);
            return Err(Error::Damaged { path: self.dir.join(crate::journal::JOURNAL), what });
        }
        if done.is_none() {
            self.dir.log(&Event::Begin { index, kind: kind.to_owned(), name: step.name.clone(), line: step.line })?;
        }
        let clock = Instant::now();
        let device = (!self.device.is_cpu()).then(|| device_name(&self.device));
        let (outcome, value) = work(self, step, done.as_ref())
            .map_err(|e| if let Some(device) = &device { e.on_device(device) } else { e })
            .map_err(|e| at(self.sources, step.span, e))?;
        self.lock_data()?;
        let elapsed_ms = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.book.steps.push(book::StepTime { line: step.line, kind, name: step.name.clone(), elapsed_ms });
        self.options.ui.detail(format!(
            "line {}: {kind} {} ({elapsed_ms} ms{})",
            step.line,
            step.name,
            if outcome.reused.is_some() { ", reused" } else { "" }
        ));
        self.dir.log(&Event::Step(StepDone {
            index,
            kind: kind.to_owned(),
            name: step.name.clone(),
            line: step.line,
            elapsed_ms,
            peak_rss_bytes: peak_rss_bytes(),
            reused: outcome.reused.is_some(),
            reason: outcome.reused,
            files: outcome.files,
            result: outcome.result,
        }))?;
        prunectl_kernels::memory::release();
        Ok(value)
    }

    fn step(&mut self, step: &Step, done: Option<&StepDone>) -> Result<Outcome> {
        match &step.kind {
            StepKind::Load { model } => self.load(model),
            StepKind::Freeze { model, id } => self.freeze(model, *id),
            StepKind::Snapshot { model, name } => self.snapshot(model, name),
            StepKind::Rewind { model, to, schedule_only } => self.rewind(model, to, *schedule_only),
            StepKind::Compact { model } => self.compact(model),
            StepKind::Reinit { model, seed } => self.reinit(model, *seed),
            StepKind::Score { selector, criterion, batch } => self.score(step, selector, criterion, *batch, done),
            StepKind::Prune(prune) => self.prune(step, prune, done),
            StepKind::Eval { metric, model, data, batch } => self.eval(step, metric, model, data.as_ref(), *batch, done),
            StepKind::Train(train) => self.train(step, train, done),
            StepKind::Save { model, to, format, layout, dtype } => self.save(model, to, format, layout, dtype.as_deref(), done),
            StepKind::Adopt { model, grid, filter, rank, lowest } => self.adopt(model, grid, filter.as_ref(), rank, *lowest),
            StepKind::Reconstruct { selector, teacher, data, length, options } => {
                self.reconstruct(step, selector, teacher, data, (*length, options), done)
            }
            StepKind::Attach { adapter, selector, name } => self.attach(adapter, selector, name),
            StepKind::Fuse { adapter, model } => self.fuse(adapter, model),
            StepKind::Quantize { model, method } => self.quantize(model, method),
            StepKind::Repeat { .. } | StepKind::Sweep { .. } | StepKind::Expect { .. } => {
                Err(Error::Internal(format!("`{}` reached the wrong place", kind_name(&step.kind))))
            }
        }
    }

    /// Adds the data files that a step opened to the lock, and tells what of them was left out.
    fn lock_data(&mut self) -> Result<()> {
        for (path, bad) in self.data.skipped() {
            let message = format!("{}: {bad}\n  left out, as `corrupt = skip` says", path.display());
            if !self.book.warnings.contains(&message) {
                self.warn(message);
            }
        }
        if self.lock.data(&self.data.files(), "the run began")? {
            self.write_lock()?;
        }
        Ok(())
    }

    /// Adds other files that a step reads to the lock.
    fn lock_files(&mut self, paths: &[std::path::PathBuf]) -> Result<()> {
        let mut changed = false;
        for path in paths {
            changed |= self.lock.file(path, "the run began")?;
        }
        if changed { self.write_lock() } else { Ok(()) }
    }

    fn write_lock(&self) -> Result<()> {
        self.dir.write(LOCK, self.lock.to_yaml()?.as_bytes()).map(|_| ())
    }

    fn write_results(&self) -> Result<()> {
        self.dir.write_json(METRICS, &self.book.metrics()).map(|_| ())
    }

    fn warn(&mut self, message: String) {
        self.options.ui.warn(&message);
        self.book.warnings.push(message);
    }

    /// A bar for a step's work.
    fn progress(&self, what: &str) -> Bar {
        Bar { bar: self.options.ui.bar(what), ui: self.options.ui }
    }

    /// The text of a call, as the recipe has it.
    fn call(&self, span: Span, name: &str) -> String {
        let text = self.sources.slice(span);
        if text.is_empty() { format!("{name}()") } else { text.split_whitespace().collect::<Vec<_>>().join(" ") }
    }
}

/// Adds the recipe's place to an error.
fn at(sources: &Sources, span: Span, error: Error) -> Error {
    if matches!(error, Error::Step { .. } | Error::Internal(_)) {
        return error;
    }
    let recipe = error.exit_status() == crate::error::EXIT_RECIPE;
    Error::Step { rendered: place(&error.to_string(), sources.get(span.file), span), recipe }
}

/// An error message with the line of the recipe that it belongs to.
fn place(message: &str, source: Option<&Source>, span: Span) -> String {
    let Some(source) = source else { return message.to_owned() };
    let (line, column) = source.line_col(span.start);
    let text = source.text.get(source.line_range(line)).unwrap_or_default();
    let (end_line, end_column) = source.line_col(span.end);
    let last = if end_line == line { end_column } else { text.trim_end().chars().count() as u32 + 1 };
    let carets = "^".repeat(last.saturating_sub(column).max(1) as usize);
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    let indent = " ".repeat(column.saturating_sub(1) as usize);
    format!("error: {message}\n{gutter}--> {}:{line}:{column}\n{gutter} |\n{number} | {text}\n{gutter} | {indent}{carets}", source.name)
}

/// The word for a step in the journal.
pub fn kind_name(kind: &StepKind) -> &'static str {
    match kind {
        StepKind::Score { .. } => "score",
        StepKind::Prune(_) => "prune",
        StepKind::Compact { .. } => "compact",
        StepKind::Reconstruct { .. } => "reconstruct",
        StepKind::Train(_) => "train",
        StepKind::Attach { .. } => "attach",
        StepKind::Fuse { .. } => "fuse",
        StepKind::Snapshot { .. } => "snapshot",
        StepKind::Rewind { .. } => "rewind",
        StepKind::Reinit { .. } => "reinit",
        StepKind::Quantize { .. } => "quantize",
        StepKind::Load { .. } => "load",
        StepKind::Freeze { .. } => "freeze",
        StepKind::Repeat { .. } => "repeat",
        StepKind::Sweep { .. } => "sweep",
        StepKind::Adopt { .. } => "adopt",
        StepKind::Eval { .. } => "eval",
        StepKind::Expect { .. } => "expect",
        StepKind::Save { .. } => "save",
    }
}

/// After a failed expectation the run still measures and saves what there is, and stops before anything else changes a model.
fn changes_a_model(kind: &StepKind) -> bool {
    !matches!(
        kind,
        StepKind::Score { .. }
            | StepKind::Eval { .. }
            | StepKind::Expect { .. }
            | StepKind::Save { .. }
            | StepKind::Freeze { .. }
            | StepKind::Snapshot { .. }
    )
}

/// Whether some `adopt` takes a cell of that sweep.
fn adopts(steps: &[Step], name: &str) -> bool {
    steps.iter().any(|s| match &s.kind {
        StepKind::Adopt { grid, .. } => grid == name || book::plain_name(name) == grid,
        StepKind::Repeat { rounds, .. } => rounds.iter().any(|r| adopts(r, name)),
        StepKind::Sweep { cells, .. } => cells.iter().any(|c| adopts(&c.steps, name)),
        _ => false,
    })
}

/// Peak memory of this process in bytes, 0 where the system doesn't tell.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A progress bar that methods talk to.
struct Bar {
    bar: ProgressBar,
    ui: crate::ui::Ui,
}

impl Progress for Bar {
    fn advance(&self, done: u64, total: u64, what: &str) {
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
        }
        self.bar.set_message(what.to_owned());
        self.bar.set_position(done);
    }

    fn note(&self, message: &str) {
        self.bar.suspend(|| self.ui.note(message));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_their_line() {
        let mut sources = Sources::default();
        sources.add("a.prune", "edition 2026\nprune m by 40%\n");
        let text = place("no", sources.get(0), Span { file: 0, start: 13, end: 27 });
        assert_eq!(text, "error: no\n --> a.prune:2:1\n  |\n2 | prune m by 40%\n  | ^^^^^^^^^^^^^^");
    }
}
