//! From what a run found out to what its report shows.

use prunectl_model::Transformer;
use prunectl_prune::{Key, site};
use prunectl_recipe::catalogue::SiteKind;

use crate::compare::Comparison;
use crate::error::Result;
use crate::executor::Executor;
use crate::executor::analyses;
use crate::executor::book::{Row, Scored, plain_name, unit_of};
use crate::report::{
    Chart, Expectation, FigureUnit, FloorTable, HeatRow, Heatmap, Histogram, MetricRow, ProxyRow, RankTable, ReportData, SavedModel,
    Series, ShapeRow, StepRow, SummaryRow, Sweep, SweepCell, SweepMetric, figure,
};
use crate::session::device_name;

/// Bars of a histogram.
const BINS: usize = 60;
/// Weights of a matrix that a histogram looks at, at most; of larger ones every n-th.
const SAMPLED: usize = 1 << 16;

impl Executor<'_> {
    pub(super) fn report(&self, summary: &[SummaryRow], failed: &[String]) -> Result<ReportData> {
        let book = &self.book;
        let (ranks, floors) = self.compared()?;
        Ok(ReportData {
            title: self.plan.name.clone(),
            doc: self.plan.doc.clone(),
            outcome: if failed.is_empty() { "done".to_owned() } else { format!("failed: {}", failed.join("; ")) },
            summary: summary.to_vec(),
            metrics: self.metric_rows(),
            expectations: book
                .expectations
                .iter()
                .map(|e| Expectation {
                    text: e.text.clone(),
                    line: e.line,
                    passed: e.passed,
                    detail: e.detail.clone(),
                    message: e.message.clone(),
                })
                .collect(),
            // A prune by stored scores shows the map of those scores, once.
            heatmaps: book
                .scored
                .iter()
                .filter(|s| !book.scored.iter().any(|o| plain_name(&o.name) == s.criterion))
                .flat_map(|s| self.heatmaps(s))
                .collect(),
            ranks,
            floors,
            shapes: self.shapes(),
            histograms: self.histograms()?,
            sweeps: book.sweeps.iter().map(|s| self.sweep_table(s)).collect(),
            sensitivity: book
                .bounds
                .iter()
                .filter_map(|(name, how)| sensitivity(name, how))
                .chain(book.rows.iter().flat_map(analyses::curves))
                .collect(),
            alike: book.rows.iter().filter_map(analyses::alike).collect(),
            curves: book.curves.iter().flat_map(charts).chain(book.recovered.iter().filter_map(fitted)).collect(),
            saves: book
                .saves
                .iter()
                .map(|s| SavedModel { dir: s.dir.clone(), bytes: s.weight_bytes, loaders: s.loaders.clone(), verified: s.verified.clone() })
                .collect(),
            warnings: book.warnings.clone(),
            steps: book
                .steps
                .iter()
                .map(|s| StepRow { line: s.line, kind: s.kind.to_owned(), name: s.name.clone(), elapsed_ms: s.elapsed_ms })
                .collect(),
            environment: self.environment(),
            recipe: self.sources.get(0).map(|s| s.text.clone()).unwrap_or_default(),
        })
    }

    /// Scores beside one another, where the run made several.
    fn compared(&self) -> Result<(Vec<RankTable>, Vec<FloorTable>)> {
        if self.book.scored.len() < 2 {
            return Ok((Vec::new(), Vec::new()));
        }
        let found = Comparison::read(&[self.dir.path().to_owned()])?;
        let ranks = found.correlations.into_iter().map(|c| RankTable {
            title: format!("{} units of {}", c.units, c.site),
            names: c.scores,
            exact: c.exact,
            rho: c.overall,
        });
        let floors = found.metrics.into_iter().filter_map(|m| {
            let floor = m.floors.first()?.seeds.join(", ");
            let row = |r: crate::compare::MetricLine| r.margin.map(|g| (r.scores, g.mean, g.better, g.amounts));
            Some(FloorTable { metric: m.name, floor, unit: m.unit, rows: m.rows.into_iter().filter_map(row).collect() })
        });
        Ok((ranks.collect(), floors.filter(|f| !f.rows.is_empty()).collect()))
    }

    /// Every `eval` as the report and the model card show it.
    pub(super) fn metric_rows(&self) -> Vec<MetricRow> {
        let rows = &self.book.rows;
        let dense_of = |row: &Row| {
            let same = |r: &&Row| {
                r.recorded.dense && r.call == row.call && r.recorded.data == row.recorded.data && r.recorded.model == row.recorded.model
            };
            rows.iter().find(same).filter(|_| !row.recorded.dense).map(|r| r.recorded.value)
        };
        rows.iter()
            .map(|row| {
                let r = &row.recorded;
                let counted = match (r.examples, r.tokens) {
                    (Some(n), _) => format!("{} examples", figure(n as f64, FigureUnit::Count)),
                    (None, Some(n)) => format!("{} tokens", figure(n as f64, FigureUnit::Count)),
                    (None, None) => String::new(),
                };
                MetricRow {
                    name: row.name.clone(),
                    metric: row.call.clone(),
                    model: r.model.clone(),
                    value: r.value,
                    unit: unit_of(&r.metric),
                    stderr: r.stderr,
                    protocol: r.protocol.clone(),
                    counted,
                    device: r.device.clone(),
                    dense: dense_of(row),
                }
            })
            .collect()
    }

    /// One map for each kind of unit that was scored, in indices of the loaded model.
    fn heatmaps(&self, scored: &Scored) -> Vec<Heatmap> {
        let Some(state) = self.state.models.get(&scored.model) else { return Vec::new() };
        let mut kinds: Vec<SiteKind> = scored.scores.sites.keys().map(|k| k.kind).collect();
        kinds.dedup();
        kinds
            .into_iter()
            .map(|kind| {
                let rows = scored.scores.sites.iter().filter(|(k, _)| k.kind == kind);
                let rows = rows.map(|(key, values)| {
                    let layer = key.layer.map_or(0, |l| scored.map.layer(l));
                    let unit = |u: usize| scored.map.unit(*key, u);
                    let width = (0..values.len()).map(unit).max().map_or(0, |m| m + 1);
                    let (mut scores, mut removed) = (vec![None; width], vec![true; width]);
                    for (u, value) in values.iter().enumerate() {
                        let original = unit(u);
                        if let (Some(s), Some(r)) = (scores.get_mut(original), removed.get_mut(original)) {
                            *s = Some(*value);
                            *r = !self.is_left(state, Key { kind, layer: key.layer.map(|_| layer) }, original);
                        }
                    }
                    HeatRow { layer, scores, removed }
                });
                Heatmap {
                    title: format!("{} · {}", scored.name, site::part(kind)),
                    criterion: scored.criterion.clone(),
                    unit: site::plural(kind).trim_end_matches('s').to_owned(),
                    rows: rows.collect(),
                }
            })
            .collect()
    }

    /// Whether a unit of the loaded model is still there and not masked.
    fn is_left(&self, state: &super::state::ModelState, original: Key, unit: usize) -> bool {
        let layer = match original.layer {
            None => None,
            Some(l) => match (0..state.model.n_layers()).find(|now| state.map.layer(*now) == l) {
                Some(now) => Some(now),
                None => return false,
            },
        };
        let key = Key { kind: original.kind, layer };
        let total = match site::to_model(key.kind) {
            Some(kind) => state.model.units(kind, layer).unwrap_or(0),
            None => return true,
        };
        (0..total).any(|u| state.map.unit(key, u) == unit && !state.removed.has(key, u))
    }

    fn shapes(&self) -> Vec<ShapeRow> {
        let Some(state) = self.state.models.values().find(|m| m.changed).or(self.state.models.values().next()) else { return Vec::new() };
        let after = |layer: usize| {
            (0..state.model.n_layers()).find(|now| state.map.layer(*now) == layer).and_then(|now| state.model.dims().get(now).copied())
        };
        state.dense.dims().iter().enumerate().map(|(layer, before)| ShapeRow { layer, before: *before, after: after(layer) }).collect()
    }

    fn histograms(&self) -> Result<Vec<Histogram>> {
        let mut out = Vec::new();
        for (name, state) in self.state.models.iter().filter(|(_, m)| m.changed) {
            let title = format!("weight matrices of the layers of {name}");
            let (before, after) = (weights(&state.dense)?, weights(&state.model)?);
            let before: Vec<&[f32]> = before.iter().map(Vec::as_slice).collect();
            let after: Vec<&[f32]> = after.iter().map(Vec::as_slice).collect();
            out.push(Histogram::of(&title, BINS, &before, &after));
        }
        Ok(out)
    }

    fn sweep_table(&self, sweep: &super::book::SweepResult) -> Sweep {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in sweep.cells.iter().flat_map(|c| &c.values) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let row_of = |name: &str| self.book.rows.iter().find(|r| plain_name(&r.name) == name);
        let metrics = names.iter().map(|name| SweepMetric {
            name: name.clone(),
            unit: row_of(name).map_or(FigureUnit::Plain, |r| unit_of(&r.recorded.metric)),
            higher_is_better: row_of(name).and_then(|r| r.higher_is_better).unwrap_or(false),
        });
        let cells = sweep.cells.iter().map(|c| SweepCell {
            labels: c.labels.clone(),
            values: names.iter().map(|n| c.values.iter().rev().find(|(name, _)| name == n).map(|(_, v)| *v)).collect(),
            params: c.params,
            failed: c.failed.clone(),
        });
        let proxies = sweep.proxies.iter().map(|p| ProxyRow {
            proxy: p.proxy.clone(),
            metric: p.metric.clone(),
            cells: p.cells,
            rho: p.spearman,
            agreed: p.pairs_agreed,
        });
        // A proxy is no result: what is plotted is the first metric that is none.
        let plot = names.iter().find(|n| !sweep.proxies.iter().any(|p| p.proxy == **n)).filter(|_| !sweep.proxies.is_empty()).cloned();
        Sweep {
            name: sweep.name.clone(),
            axes: sweep.axes.clone(),
            metrics: metrics.collect(),
            cells: cells.collect(),
            plot,
            proxies: proxies.collect(),
        }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut out = vec![
            ("prunectl".to_owned(), self.start.prunectl.clone()),
            ("device".to_owned(), device_name(&self.device)),
            ("threads".to_owned(), rayon::current_num_threads().to_string()),
            ("system".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("peak memory".to_owned(), figure(super::peak_rss_bytes() as f64, FigureUnit::Bytes)),
            ("recipe sha256".to_owned(), self.start.recipe_sha256.clone()),
        ];
        out.extend(self.start.set.iter().map(|(name, value)| (format!("--set {name}"), value.clone())));
        out.extend(self.data_files().into_iter().map(|f| (f.path.display().to_string(), format!("sha256 {}", f.sha256))));
        out
    }
}

/// Values of the layers' matrices; of large ones every n-th, evenly spread.
fn weights(model: &Transformer) -> Result<Vec<Vec<f32>>> {
    let mut out = Vec::new();
    for layer in 0..model.n_layers() {
        for slot in model.linears(layer)? {
            let flat = model.params().read(&slot)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let stride = flat.len().div_ceil(SAMPLED).max(1);
            out.push(flat.into_iter().step_by(stride).collect());
        }
    }
    Ok(out)
}

/// The sensitivity curves that a bound was met from.
fn sensitivity(name: &str, how: &serde_json::Value) -> Option<Chart> {
    let series = how.get("curves")?.as_array()?.iter().filter_map(|c| {
        let points = c.get("points")?.as_array()?.iter().filter_map(|p| Some((p.get(0)?.as_f64()?, p.get(1)?.as_f64()?)));
        Some(Series { name: c.get("site")?.as_str()?.to_owned(), points: points.collect() })
    });
    Some(Chart {
        title: format!("{name}: loss with units of one layer gone"),
        x: "units gone".to_owned(),
        y: "loss".to_owned(),
        series: series.collect(),
    })
}

fn charts(curve: &super::book::Curve) -> Vec<Chart> {
    let chart = |what: &str, series: Vec<Series>| Chart {
        title: format!("{}: {what}", curve.name),
        x: "step".to_owned(),
        y: what.to_owned(),
        series,
    };
    let mut out = vec![chart("loss", vec![Series { name: "loss".to_owned(), points: curve.loss.clone() }])];
    if let Some(first) = out.first_mut().filter(|_| curve.trained > 0) {
        first.title = format!("{}, {} parameters trained", first.title, curve.trained);
    }
    if !curve.sparsity.is_empty() {
        out.push(chart("share masked", vec![Series { name: "masked".to_owned(), points: curve.sparsity.clone() }]));
    }
    for (name, points) in &curve.evals {
        out.push(chart(name, vec![Series { name: name.clone(), points: points.clone() }]));
    }
    out
}

/// The error of the residual stream behind each fitted matrix before and after, over the layers.
fn fitted(recovered: &super::book::Recovered) -> Option<Chart> {
    recovered.lost()?;
    let mut series = Vec::new();
    for (part, name) in [(".attention.", "attention"), (".mlp.", "MLP")] {
        let own = || recovered.writers.iter().filter(|w| w.slot.contains(part));
        let at = |slot: &str| slot.split('.').nth(1).and_then(|l| l.parse::<f64>().ok()).unwrap_or(f64::NAN);
        for (when, of) in [("before", (|w| w.before) as fn(&prunectl_prune::Fitted) -> f64), ("after", |w| w.after)] {
            let points: Vec<(f64, f64)> = own().map(|w| (at(&w.slot), of(w))).collect();
            if !points.is_empty() {
                series.push(Series { name: format!("{name}, {when}"), points });
            }
        }
    }
    Some(Chart {
        title: format!("{}: reconstruct = {}", recovered.name, recovered.method),
        x: "layer".to_owned(),
        y: "error of the residual stream, share of its square".to_owned(),
        series,
    })
}
