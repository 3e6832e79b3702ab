//! What a report says: plain data, so that a report can be drawn again from a run directory's JSON.

use prunectl_model::LayerDims;
use serde::{Deserialize, Serialize};

/// Everything in `report.html`. Empty parts are left out of the page.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReportData {
    /// The recipe's name.
    pub title: String,
    /// The recipe's doc comment, plain text.
    pub doc: String,
    /// `done`, `failed: …`, as the run ended.
    pub outcome: String,
    /// Dense beside pruned: accuracy, parameters, file size, tokens/s.
    pub summary: Vec<SummaryRow>,
    /// Every `eval`, in order.
    pub metrics: Vec<MetricRow>,
    /// Every `expect`, in order.
    pub expectations: Vec<Expectation>,
    /// One map per score.
    pub heatmaps: Vec<Heatmap>,
    /// Shapes before and after, by layer of the original model.
    pub shapes: Vec<ShapeRow>,
    /// Weights before and after.
    pub histograms: Vec<Histogram>,
    /// Do criteria agree: one table for each kind of unit that several scored.
    #[serde(default)]
    pub ranks: Vec<RankTable>,
    /// Do criteria beat chance: one table for each metric.
    #[serde(default)]
    pub floors: Vec<FloorTable>,
    /// Every `sweep`.
    pub sweeps: Vec<Sweep>,
    /// Loss against units gone, one layer at a time.
    #[serde(default)]
    pub sensitivity: Vec<Chart>,
    /// How alike the states between blocks are: one table a measure.
    #[serde(default)]
    pub alike: Vec<RankTable>,
    /// Training and validation curves.
    pub curves: Vec<Chart>,
    /// Every `save`.
    pub saves: Vec<SavedModel>,
    /// Warnings, in order.
    pub warnings: Vec<String>,
    /// The steps with their times.
    pub steps: Vec<StepRow>,
    /// Version, device, threads, memory, dates, hashes.
    pub environment: Vec<(String, String)>,
    /// The recipe, as it ran.
    pub recipe: String,
}

/// A figure of the dense model beside the pruned one's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SummaryRow {
    /// `accuracy`, `parameters`, …
    pub name: String,
    /// Before; `None` where it was not measured.
    pub dense: Option<f64>,
    /// After.
    pub pruned: Option<f64>,
    /// How both are printed.
    pub unit: FigureUnit,
    /// Which way is good; decides no colour, only the words of the change.
    pub higher_is_better: Option<bool>,
}

/// How a figure is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FigureUnit {
    /// `4.794`.
    #[default]
    Plain,
    /// A fraction of 1, printed as `87.04 %`.
    Percent,
    /// A whole number, printed with thin spaces.
    Count,
    /// KiB, MiB, GiB.
    Bytes,
    /// `12.3 ms`.
    Milliseconds,
    /// `1 234 tokens/s`.
    TokensPerSecond,
}

/// One `eval`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricRow {
    /// Its `as` name.
    pub name: String,
    /// The call: `perplexity(window = 512 tokens)`.
    pub metric: String,
    /// Which model, in the recipe's words.
    pub model: String,
    /// The value.
    pub value: f64,
    /// How it is printed.
    pub unit: FigureUnit,
    /// Standard error where there is one.
    pub stderr: Option<f64>,
    /// What was done, in words.
    pub protocol: String,
    /// `4 096 examples`.
    pub counted: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The same metric of the dense model.
    pub dense: Option<f64>,
}

/// One `expect`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expectation {
    /// Its expression, as written.
    pub text: String,
    /// Its line.
    pub line: u32,
    /// Whether it held.
    pub passed: bool,
    /// The values in it: `0.861 >= 0.867 - 0.01`.
    pub detail: String,
    /// `else "…"`.
    pub message: Option<String>,
}

/// Scores of units, [layer × unit].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heatmap {
    /// The score's name and site: `s · attention.heads`.
    pub title: String,
    /// The criterion, in words or as a call.
    pub criterion: String,
    /// `head`, `neuron`, …
    pub unit: String,
    /// One row per layer of the original model.
    pub rows: Vec<HeatRow>,
}

/// One layer of a [`Heatmap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeatRow {
    /// Index in the original model.
    pub layer: usize,
    /// One per unit of the original model; `None`: not scored.
    pub scores: Vec<Option<f32>>,
    /// Which units were removed.
    pub removed: Vec<bool>,
}

/// One layer's shape before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeRow {
    /// Index in the original model.
    pub layer: usize,
    /// Before.
    pub before: LayerDims,
    /// After; `None`: the layer is gone.
    pub after: Option<LayerDims>,
}

/// Counts of weights by value; both over the same edges.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Histogram {
    /// What was counted.
    pub title: String,
    /// `n + 1` edges, ascending.
    pub edges: Vec<f64>,
    /// `n` counts of the dense weights.
    pub before: Vec<u64>,
    /// `n` counts of the pruned ones, zeros left out.
    pub after: Vec<u64>,
    /// Weights that are exactly zero now.
    pub zeros_after: u64,
}

impl Histogram {
    /// Counts both over `bins` equal bins that span ±4 standard deviations of `before`; what lies outside goes to the outer bins.
    /// Weights that are not finite are left out.
    #[must_use]
    pub fn of(title: &str, bins: usize, before: &[&[f32]], after: &[&[f32]]) -> Self {
        let bins = bins.max(1);
        let (mut n, mut sum, mut squares) = (0_u64, 0_f64, 0_f64);
        for x in before.iter().flat_map(|s| s.iter()).filter(|x| x.is_finite()) {
            n += 1;
            sum += f64::from(*x);
            squares += f64::from(*x) * f64::from(*x);
        }
        let mean = if n == 0 { 0.0 } else { sum / n as f64 };
        let deviation = if n == 0 { 0.0 } else { (squares / n as f64 - mean * mean).max(0.0).sqrt() };
        let reach = if deviation > 0.0 { 4.0 * deviation } else { 1.0 };
        let edges: Vec<f64> = (0..=bins).map(|i| mean - reach + 2.0 * reach * i as f64 / bins as f64).collect();
        let bin = |x: f32| ((((f64::from(x) - mean + reach) / (2.0 * reach)) * bins as f64).floor().max(0.0) as usize).min(bins - 1);
        let (mut a, mut b, mut zeros_after) = (vec![0_u64; bins], vec![0_u64; bins], 0);
        let count = |into: &mut Vec<u64>, x: f32| {
            if let Some(c) = into.get_mut(bin(x)) {
                *c += 1;
            }
        };
        for x in before.iter().flat_map(|s| s.iter()).filter(|x| x.is_finite()) {
            count(&mut a, *x);
        }
        for x in after.iter().flat_map(|s| s.iter()).filter(|x| x.is_finite()) {
            if *x == 0.0 {
                zeros_after += 1;
            } else {
                count(&mut b, *x);
            }
        }
        Self { title: title.into(), edges, before: a, after: b, zeros_after }
    }
}

/// Rank correlations of scores of one kind of unit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RankTable {
    /// `48 units of attention.heads`.
    pub title: String,
    /// The scores' names, or the states'.
    pub names: Vec<String>,
    /// The exact measure among them.
    pub exact: Option<String>,
    /// Spearman's ρ, or how alike two states are, one row and one column a name; `None`: nothing to compare.
    pub rho: Vec<Vec<Option<f64>>>,
}

/// A metric's distance from random scores.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FloorTable {
    /// The metric's name.
    pub metric: String,
    /// The random scores' name.
    pub floor: String,
    /// How the distance is printed.
    pub unit: FigureUnit,
    /// Scores, mean improvement, amounts at which they are better, amounts compared.
    pub rows: Vec<(String, f64, usize, usize)>,
}

/// One `sweep`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sweep {
    /// Its `as` name.
    pub name: String,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Names of the metrics, one column each.
    pub metrics: Vec<SweepMetric>,
    /// Its cells, in order.
    pub cells: Vec<SweepCell>,
    /// The metric on the curve's y axis; the first one where it is `None`.
    pub plot: Option<String>,
    /// Zero-cost proxies beside its other metrics.
    #[serde(default)]
    pub proxies: Vec<ProxyRow>,
}

/// How one zero-cost proxy ranks the cells of a sweep beside one metric.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProxyRow {
    /// The proxy's name.
    pub proxy: String,
    /// The metric's name.
    pub metric: String,
    /// Cells that have both.
    pub cells: usize,
    /// Spearman's ρ, positive where both find the same cells better.
    pub rho: Option<f64>,
    /// Of a vote: the share of ordered pairs that both decide alike.
    pub agreed: Option<f64>,
}

/// A column of a sweep's table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SweepMetric {
    /// Its name.
    pub name: String,
    /// How it is printed.
    pub unit: FigureUnit,
    /// Which way is good (for the Pareto front).
    pub higher_is_better: bool,
}

/// One cell of a sweep.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SweepCell {
    /// One label per axis.
    pub labels: Vec<String>,
    /// One value per metric.
    pub values: Vec<Option<f64>>,
    /// Parameters of the cell's model.
    pub params: Option<u64>,
    /// The `expect` that failed in it.
    pub failed: Option<String>,
}

/// Lines over a common x axis.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// Name of the x axis.
    pub x: String,
    /// Name of the y axis.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Points in order of x; points that are not finite break the line.
    pub points: Vec<(f64, f64)>,
}

/// One `save`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedModel {
    /// Where.
    pub dir: String,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Loader and verdict.
    pub loaders: Vec<(String, String)>,
    /// What the check after saving found.
    pub verified: String,
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepRow {
    /// Its line.
    pub line: u32,
    /// `prune`, `eval`, …
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Milliseconds.
    pub elapsed_ms: u64,
}
