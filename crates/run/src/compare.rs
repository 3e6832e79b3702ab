//! What run directories say about criteria: scores of the same site beside one another, and what each left of the model at each amount.
//!
//! Read from the journal and the score files alone, so a run can be compared on a machine that never saw its model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prunectl_prune::{Agreement, ByAmount, Margin, Scores, Standing, agreements, margin, mean_curve, site};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::executor::{plain_name, unit_of};
use crate::files::sha256;
use crate::journal::{Event, Journal, StepDone};
use crate::report::FigureUnit;
use crate::rundir::SCORES;

/// One set of scores.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreSet {
    /// Its name in every table: the step's, behind its run's where several runs have it.
    pub name: String,
    /// The run directory.
    pub run: PathBuf,
    /// The criterion's call, as the recipe has it.
    pub criterion: String,
    /// Exact, an estimate, or chance.
    pub standing: Standing,
    /// What scoring took; `None` where the scores were made while pruning.
    pub scored_ms: Option<u64>,
    #[serde(skip)]
    scores: Scores,
    #[serde(skip)]
    step: String,
}

/// A metric after a prune.
#[derive(Debug, Clone)]
struct Point {
    run: PathBuf,
    set: String,
    metric: MetricKey,
    amount: String,
    gone: f64,
    value: f64,
}

/// Which metric: values compare only where all of it is the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct MetricKey {
    name: String,
    metric: String,
    data: String,
    protocol: String,
}

/// A metric at each amount, a row for each set of scores.
#[derive(Debug, Clone, Serialize)]
pub struct MetricTable {
    /// Its recorded name: `acc`.
    pub name: String,
    /// The metric: `accuracy`.
    pub metric: String,
    /// The data.
    pub data: String,
    /// Of the model as it was loaded.
    pub dense: Option<f64>,
    /// Whether a larger value is a better model.
    pub higher_is_better: Option<bool>,
    /// The amounts, least first.
    pub amounts: Vec<String>,
    /// One row for each set of scores that was pruned by, and for each recovery after it.
    pub rows: Vec<MetricLine>,
    /// The floors: one for each recovery that random scores were measured with.
    pub floors: Vec<Floor>,
    /// How values are printed.
    #[serde(skip)]
    pub unit: FigureUnit,
}

/// One row of a [`MetricTable`].
#[derive(Debug, Clone, Serialize)]
pub struct MetricLine {
    /// The scores' name.
    pub scores: String,
    /// Whether it is a floor, or one of its seeds.
    pub floor: bool,
    /// One value for each amount.
    pub values: Vec<Option<f64>>,
    /// Against random scores with the same recovery, or, where there are none, without it.
    #[serde(serialize_with = "margin_json")]
    pub margin: Option<Margin>,
}

/// Random scores with one recovery (or none), over their seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// ` + least_squares`; empty: as cut.
    pub after: String,
    /// The rows that it is the mean of.
    pub seeds: Vec<String>,
    /// Their mean at each amount.
    pub values: Vec<Option<f64>>,
}

/// Rank correlations of one kind of unit.
#[derive(Debug, Clone, Serialize)]
pub struct Correlations {
    /// `attention.heads`.
    pub site: String,
    /// Units compared.
    pub units: usize,
    /// Layers that hold them.
    pub layers: usize,
    /// Names of the scores, in order.
    pub scores: Vec<String>,
    /// The exact loss delta among them, where one was measured.
    pub exact: Option<String>,
    /// Spearman's ρ over all units.
    pub overall: Vec<Vec<Option<f64>>>,
    /// Mean over layers of the layer's own ρ.
    pub within_layers: Vec<Vec<Option<f64>>>,
}

/// Everything that runs say about criteria.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Comparison {
    /// The sets of scores.
    pub scores: Vec<ScoreSet>,
    /// One for each kind of unit.
    pub correlations: Vec<Correlations>,
    /// One for each metric.
    pub metrics: Vec<MetricTable>,
}

impl Comparison {
    /// Whether there is nothing to compare.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.correlations.is_empty() && self.metrics.iter().all(|m| m.rows.len() < 2)
    }

    /// Reads runs.
    pub fn read(runs: &[PathBuf]) -> Result<Self> {
        let mut all = Reader::default();
        for run in runs {
            all.run(run)?;
        }
        all.finish(runs.len() > 1)
    }
}

#[derive(Default)]
struct Reader {
    sets: Vec<ScoreSet>,
    points: Vec<Point>,
    dense: BTreeMap<MetricKey, f64>,
    better: BTreeMap<MetricKey, bool>,
}

/// The prune that a model's next metrics belong to.
#[derive(Clone)]
struct Pruned {
    set: String,
    amount: String,
    gone: f64,
}

impl Reader {
    fn run(&mut self, run: &Path) -> Result<()> {
        let mut steps: BTreeMap<usize, StepDone> = BTreeMap::new();
        for event in Journal::read(run)? {
            if let Event::Step(done) = event {
                steps.insert(done.index, done);
            }
        }
        let mut last: BTreeMap<String, Pruned> = BTreeMap::new();
        for done in steps.values() {
            let text = |key: &str| done.result.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            match done.kind.as_str() {
                "score" => self.set(run, done, &done.name, Some(done.elapsed_ms))?,
                "prune" => {
                    // Journals of earlier versions name the scores in words only.
                    let named = || text("scores").split('`').nth(1).map(str::to_owned);
                    let by = Some(text("criterion")).filter(|c| !c.is_empty()).or_else(named).unwrap_or_else(|| done.name.clone());
                    if !self.sets.iter().any(|s| s.run == run && (s.step == by || plain_name(&s.step) == by)) {
                        self.set(run, done, &by, None)?;
                    }
                    let fit = done.result.get("reconstruct").and_then(|r| r.get("method")).and_then(Value::as_str);
                    let set = fit.map_or_else(|| by.clone(), |fit| format!("{by} + {fit}"));
                    last.insert(text("model"), Pruned { set, amount: text("amount"), gone: share_gone(&done.result) });
                }
                // What follows is the pruned model after recovery: a row of its own.
                kind @ ("train" | "reconstruct") => last.values_mut().for_each(|p| p.set = format!("{} + {kind}", p.set)),
                "eval" => self.value(run, done, &last),
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, run: &Path, done: &StepDone, step: &str, scored_ms: Option<u64>) -> Result<()> {
        let Some((file, hash)) = done.files.iter().find(|(f, _)| f.starts_with(SCORES)) else { return Ok(()) };
        let path = run.join(file);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let found = sha256(&bytes);
        if found != *hash {
            return Err(Error::Damaged { path, what: format!("found sha256 {found}, the journal has {hash}") });
        }
        let scores = crate::executor::named_scores(&bytes, &path)?;
        let criterion = done.result.get("criterion").and_then(Value::as_str).unwrap_or(step).to_owned();
        let standing = done.result.get("standing").and_then(|s| serde_json::from_value(s.clone()).ok()).unwrap_or_default();
        self.sets.push(ScoreSet {
            name: step.to_owned(),
            run: run.to_owned(),
            criterion,
            standing,
            scored_ms,
            scores,
            step: step.to_owned(),
        });
        Ok(())
    }

    fn value(&mut self, run: &Path, done: &StepDone, last: &BTreeMap<String, Pruned>) {
        let text = |key: &str| done.result.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let value = match done.result.get("value") {
            Some(Value::String(s)) => s.parse().ok(),
            other => other.and_then(Value::as_f64),
        };
        let Some(value) = value else { return };
        let dense = done.result.get("dense").and_then(Value::as_bool) == Some(true);
        let mut key = MetricKey { name: String::new(), metric: text("metric"), data: text("data"), protocol: text("protocol") };
        if dense {
            self.dense.insert(key, value);
            return;
        }
        key.name = plain_name(&done.name).to_owned();
        let Some(by) = last.get(&text("model")) else { return };
        if let Some(better) = done.result.get("higher_is_better").and_then(Value::as_bool) {
            self.better.insert(key.clone(), better);
        }
        let (set, amount, gone) = (by.set.clone(), by.amount.clone(), by.gone);
        self.points.push(Point { run: run.to_owned(), set, metric: key, amount, gone, value });
    }

    fn finish(mut self, several: bool) -> Result<Comparison> {
        let names: Vec<String> = self.sets.iter().map(|s| s.step.clone()).collect();
        for set in &mut self.sets {
            if several && names.iter().filter(|n| **n == set.step).count() > 1 {
                set.name = format!("{}/{}", run_name(&set.run), set.step);
            }
        }
        let all: Vec<&Scores> = self.sets.iter().map(|s| &s.scores).collect();
        let correlations = agreements(&all)?.into_iter().map(|a| self.correlations(a)).collect();
        let metrics = self.tables(several);
        Ok(Comparison { scores: self.sets, correlations, metrics })
    }

    fn correlations(&self, of: Agreement) -> Correlations {
        let set = |i: &usize| self.sets.get(*i);
        Correlations {
            site: site::part(of.kind).to_owned(),
            units: of.units,
            layers: of.layers,
            scores: of.members.iter().filter_map(|i| Some(set(i)?.name.clone())).collect(),
            exact: of.members.iter().filter_map(set).find(|s| s.standing == Standing::Exact).map(|s| s.name.clone()),
            overall: of.overall,
            within_layers: of.within_layers,
        }
    }

    fn tables(&self, several: bool) -> Vec<MetricTable> {
        let mut keys: Vec<&MetricKey> = Vec::new();
        for point in &self.points {
            if !keys.contains(&&point.metric) {
                keys.push(&point.metric);
            }
        }
        keys.into_iter().map(|key| self.table(key, several)).collect()
    }

    fn table(&self, key: &MetricKey, several: bool) -> MetricTable {
        let points: Vec<&Point> = self.points.iter().filter(|p| p.metric == *key).collect();
        // By the share that went, then as the recipe has them.
        let mut amounts: Vec<(f64, String)> = Vec::new();
        let mut names: Vec<Named> = Vec::new();
        for p in &points {
            if !amounts.iter().any(|(_, a)| *a == p.amount) {
                amounts.push((p.gone, p.amount.clone()));
            }
            let name = self.shown(p, several);
            if !names.iter().any(|n| n.name == name) {
                let (set, after) = self.set_of(p);
                let chance = set.is_some_and(|s| s.standing == Standing::Chance);
                names.push(Named { name, after: after.to_owned(), floor: chance && is_closed_form(after) });
            }
        }
        amounts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let curve = |name: &str| -> ByAmount {
            let own = |amount: &String| points.iter().rev().find(|p| p.amount == *amount && self.shown(p, several) == name);
            amounts.iter().filter_map(|(_, a)| Some((a.clone(), own(a)?.value))).collect()
        };
        let row = |curve: &[(String, f64)]| -> Vec<Option<f64>> {
            amounts.iter().map(|(_, a)| curve.iter().find(|(b, _)| a == b).map(|(_, v)| *v)).collect()
        };
        let up = self.better.get(key).copied();
        let seeds = |after: &str| -> Vec<&Named> { names.iter().filter(|n| n.floor && n.after == after).collect() };
        let mut floors: Vec<Floor> = Vec::new();
        for name in names.iter().filter(|n| n.floor) {
            if !floors.iter().any(|f| f.after == name.after) {
                let own = seeds(&name.after);
                let curves: Vec<ByAmount> = own.iter().map(|n| curve(&n.name)).collect();
                let values = row(&mean_curve(&curves));
                floors.push(Floor { after: name.after.clone(), seeds: own.iter().map(|n| n.name.clone()).collect(), values });
            }
        }
        let rows = names.iter().map(|n| {
            let own = curve(&n.name);
            // Random scores with the same recovery, or without any.
            let same = Some(seeds(&n.after)).filter(|s| !s.is_empty()).unwrap_or_else(|| seeds(""));
            let floor: Vec<ByAmount> = same.iter().map(|n| curve(&n.name)).collect();
            let against = up.filter(|_| !n.floor).and_then(|up| margin(&own, &floor, up));
            MetricLine { scores: n.name.clone(), floor: n.floor, values: row(&own), margin: against }
        });
        let dense = MetricKey { name: String::new(), ..key.clone() };
        MetricTable {
            name: key.name.clone(),
            metric: key.metric.clone(),
            data: key.data.clone(),
            dense: self.dense.get(&dense).copied(),
            higher_is_better: up,
            rows: rows.collect(),
            floors,
            amounts: amounts.iter().map(|(_, a)| a.clone()).collect(),
            unit: unit_of(&key.metric),
        }
    }

    /// The set that a point was pruned by, and what was done to recover.
    fn set_of<'a>(&self, p: &'a Point) -> (Option<&ScoreSet>, &'a str) {
        let (step, after) = p.set.split_once(" + ").map_or((p.set.as_str(), ""), |(s, _)| (s, p.set.get(s.len()..).unwrap_or("")));
        let own = |s: &&ScoreSet| s.run == p.run && (s.step == step || plain_name(&s.step) == step);
        (self.sets.iter().rev().find(own), after)
    }

    fn shown(&self, p: &Point, several: bool) -> String {
        match self.set_of(p) {
            (Some(set), after) => format!("{}{after}", set.name),
            (None, _) if several => format!("{}/{}", run_name(&p.run), p.set),
            (None, _) => p.set.clone(),
        }
    }
}

/// A row of a table before it is filled.
struct Named {
    name: String,
    after: String,
    floor: bool,
}

/// Whether what followed the prune trained nothing: random scores are a floor as they are cut, and refitted.
fn is_closed_form(after: &str) -> bool {
    after.split(" + ").all(|part| part.is_empty() || prunectl_prune::Fit::of(part).is_some())
}

/// The share of the selected units that a prune's journal line says is gone: what orders amounts of different spelling.
fn share_gone(result: &Value) -> f64 {
    let of = |pair: &Value| {
        let (gone, total) = (pair.get(0)?.as_f64()?, pair.get(1)?.as_f64()?);
        (total > 0.0).then(|| gone / total)
    };
    let shares: Vec<f64> = result.get("gone").and_then(Value::as_object).into_iter().flat_map(|o| o.values().filter_map(of)).collect();
    if !shares.is_empty() {
        return shares.iter().sum::<f64>() / shares.len() as f64;
    }
    let percent = result.get("amount").and_then(Value::as_str).and_then(|a| a.split('%').next()?.parse::<f64>().ok());
    percent.map_or(0.0, |p| p / 100.0)
}

fn run_name(run: &Path) -> String {
    run.file_name().map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn margin_json<S: serde::Serializer>(m: &Option<Margin>, s: S) -> std::result::Result<S::Ok, S::Error> {
    m.map(
        |m| serde_json::json!({"amounts": m.amounts, "better_at": m.better, "better_than_all_seeds_at": m.better_than_all, "mean": m.mean}),
    )
    .serialize(s)
}
