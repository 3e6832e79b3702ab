//! The end of a run: sizes, and the short table of the dense model beside the pruned one.

use prunectl_model::{SiteKind as ModelSite, cost};
use prunectl_prune::{Inputs, METRICS, build};
use prunectl_recipe::catalogue::{Args, SiteKind};
use prunectl_recipe::plan::Value;

use crate::error::Result;
use crate::executor::Executor;
use crate::executor::book::{Row, Size, unit_of};
use crate::executor::inputs::longest_row;
use crate::executor::state::ModelState;
use crate::report::{FigureUnit, SummaryRow};

/// Tokens of the sequence that FLOPs and speed are stated for, where the model takes so many.
const LENGTH_TOKENS: usize = 128;
/// Sequences at once when speed is measured.
const SPEED_BATCH: usize = 8;
/// Timed passes; the median counts.
const SPEED_RUNS: f64 = 5.0;

impl Executor<'_> {
    pub(super) fn sizes(&mut self) -> Result<()> {
        for (name, state) in &self.state.models {
            let length = longest_row(&state.model).min(LENGTH_TOKENS);
            let flops = |m: &prunectl_model::Transformer| cost::flops_per_token(m.blueprint(), m.dims(), length) * length as u64;
            let size = Size {
                params_before: state.dense.parameter_count(),
                params_after: state.model.parameter_count(),
                masked: masked(state)?,
                flops_before: flops(&state.dense),
                flops_after: flops(&state.model),
                flops_length_tokens: length as u64,
            };
            self.book.sizes.insert(name.clone(), size);
        }
        Ok(())
    }

    /// Dense beside pruned: metrics measured on both, parameters, file size, tokens/s.
    pub(super) fn summary(&self) -> Result<Vec<SummaryRow>> {
        let changed: Vec<(&String, &ModelState)> = self.state.models.iter().filter(|(_, m)| m.changed).collect();
        let mut out = Vec::new();
        for (name, state) in &changed {
            let label = |what: &str| if changed.len() > 1 { format!("{name}: {what}") } else { what.to_owned() };
            for (dense, pruned) in pairs(&self.book.rows, name) {
                out.push(SummaryRow {
                    name: label(&pruned.call),
                    dense: dense.map(|r| r.recorded.value),
                    pruned: Some(pruned.recorded.value),
                    unit: unit_of(&pruned.recorded.metric),
                    higher_is_better: pruned.higher_is_better,
                });
            }
            let count = |n: u64| Some(n as f64);
            let row =
                |what: &str, dense, pruned, unit, up| SummaryRow { name: label(what), dense, pruned, unit, higher_is_better: Some(up) };
            if let Some(size) = self.book.sizes.get(*name) {
                out.push(row("parameters", count(size.params_before), count(size.params_after), FigureUnit::Count, false));
                if size.masked > 0 {
                    out.push(row("of them masked", Some(0.0), count(size.masked), FigureUnit::Count, true));
                }
            }
            let saved = self.book.saves.iter().rev().find(|s| s.model == **name).map(|s| s.weight_bytes as f64);
            if saved.is_some() {
                out.push(row("file size", state.file_bytes.map(|b| b as f64), saved, FigureUnit::Bytes, false));
            }
            // Of a streamed model it would be the disk's.
            if state.model.params().streamed() {
                continue;
            }
            let speed = (self.speed(&state.dense)?, self.speed(&state.model)?);
            out.push(row("speed", speed.0, speed.1, FigureUnit::TokensPerSecond, true));
        }
        Ok(out)
    }

    /// Tokens a second of a forward pass; a figure for orientation, so it is never written among the metrics.
    fn speed(&self, model: &prunectl_model::Transformer) -> Result<Option<f64>> {
        let length = longest_row(model).min(LENGTH_TOKENS);
        let mut args = Args::default();
        for (name, value) in [("batch", SPEED_BATCH as f64), ("length", length as f64), ("runs", SPEED_RUNS), ("quantile", 0.5)] {
            args.0.insert(name.to_owned(), Value::Number(value));
        }
        let metric = build(METRICS, "latency", &args)?;
        let mut inputs =
            Inputs { model, batches: None, stream: None, questions: None, asked: None, teacher: None, batch: SPEED_BATCH, progress: &() };
        let ms = metric.measure(&mut inputs)?.value;
        Ok((ms > 0.0).then(|| (SPEED_BATCH * length) as f64 / ms * 1e3))
    }
}

/// The last figure of each metric of a pruned model, with the last one of the dense model by the same call on the same data.
fn pairs<'r>(rows: &'r [Row], model: &str) -> Vec<(Option<&'r Row>, &'r Row)> {
    let same = |a: &Row, b: &Row| a.call == b.call && a.recorded.metric == b.recorded.metric && a.recorded.data == b.recorded.data;
    let of_model: Vec<&Row> = rows.iter().filter(|r| r.recorded.model == model).collect();
    let mut out: Vec<(Option<&Row>, &Row)> = Vec::new();
    for row in of_model.iter().rev().filter(|r| !r.recorded.dense) {
        if !out.iter().any(|(_, r)| same(r, row)) {
            let dense = of_model.iter().rev().find(|r| r.recorded.dense && same(r, row)).copied();
            out.push((dense, row));
        }
    }
    out.reverse();
    out
}

/// Parameters that are zeros because their units or they themselves are masked; slices that two units share count once.
fn masked(state: &ModelState) -> Result<u64> {
    let mut units = 0u64;
    for (key, gone) in &state.removed.units.units {
        // Heads count within their KV group only where the group stays; sublayers and layers are the sum of their units.
        let kind = match key.kind {
            SiteKind::Heads => ModelSite::Heads,
            SiteKind::Neurons => ModelSite::Neurons,
            SiteKind::Hidden => ModelSite::Hidden,
            _ => continue,
        };
        for unit in gone {
            for slice in state.model.group(kind, key.layer, unit)? {
                let dims = state.model.params().shape(&slice.slot)?;
                let size = dims.get(slice.dim).copied().unwrap_or(1).max(1);
                units += (dims.iter().product::<usize>() / size * slice.len) as u64;
            }
        }
    }
    let mut weights = 0u64;
    for slot in state.removed.weights.keys() {
        let Some(keep) = state.removed.weights.read(slot)? else { continue };
        let values = keep.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1::<u8>()?;
        weights += values.iter().filter(|k| **k == 0).count() as u64;
    }
    Ok(units + weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, metric: &str, dense: bool, value: f64) -> Row {
        let mut row = Row::sample(name, metric, value);
        row.recorded.dense = dense;
        row
    }

    #[test]
    fn the_last_pruned_figure_stands_beside_the_dense_one() {
        let rows = [
            row("a", "accuracy", true, 0.9),
            row("l", "loss", true, 0.3),
            row("b", "accuracy", false, 0.7),
            row("c", "accuracy", false, 0.8),
        ];
        let found = pairs(&rows, "m");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.map(|r| r.recorded.value), found[0].1.recorded.value), (Some(0.9), 0.8));
        assert!(pairs(&rows, "other").is_empty());
    }
}
