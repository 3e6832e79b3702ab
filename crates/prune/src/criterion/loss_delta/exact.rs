//! L(without the unit) − L, unit by unit, over all the data.
//!
//! The pass up to the layer is the same with and without a unit of that layer, so its output is kept, and several units of one layer
//! run as one batch: copies of the examples, each with its own gate.

use candle_core::Tensor;
use prunectl_model::{Batch, Context, Labels, LayerGates, LossOut, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use std::collections::BTreeMap;

use super::NAME;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

/// Tokens of one batched run of ablations: enough to keep the cores busy, little enough to stay in cache-sized buffers.
const TOKENS_PER_RUN: usize = 8192;

pub(super) fn score(model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
    let mut sums: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    for key in sites.units.keys() {
        sums.insert(*key, vec![0.0; count(model, *key)?]);
    }
    let work: u64 = sites.units.values().map(|u| u.len() as u64).sum();
    let total = work * data.len_hint().unwrap_or(1) as u64;
    let (mut scored, mut batches, mut done) = (0, 0, 0);
    data.reset()?;
    while let Some(batch) = data.next()? {
        batches += 1;
        let run = Run::new(model, &batch)?;
        scored += run.count;
        if run.count == 0 {
            continue;
        }
        for (key, units) in &sites.units {
            let Some(sums) = sums.get_mut(key) else { continue };
            let units: Vec<usize> = units.iter().copied().collect();
            for chunk in units.chunks(run.at_once(*key)) {
                progress.check()?;
                for (unit, delta) in chunk.iter().zip(run.deltas(*key, chunk)?) {
                    if let Some(sum) = sums.get_mut(*unit) {
                        *sum += delta;
                    }
                }
                done += chunk.len() as u64;
                progress.advance(done, total.max(done), NAME);
            }
        }
    }
    if scored == 0 {
        return Err(PruneError::NoData { method: NAME, batches });
    }
    let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / scored as f64) as f32).collect();
    Ok(Scores { sites: sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() })
}

/// One batch, with the input of every block.
struct Run<'a> {
    model: &'a Transformer,
    batch: &'a Batch,
    inputs: Vec<Tensor>,
    /// Loss of each example with every unit there.
    dense: Vec<f64>,
    count: usize,
}

impl<'a> Run<'a> {
    fn new(model: &'a Transformer, batch: &'a Batch) -> Result<Self> {
        let (mut x, context) = model.embed(batch)?;
        let mut inputs = Vec::with_capacity(model.n_layers());
        for layer in 0..model.n_layers() {
            inputs.push(x.clone());
            x = model.block(layer, &x, &context, None, &mut ())?;
        }
        let loss = loss(model, batch, &x, &context)?;
        Ok(Self { model, batch, inputs, dense: loss.per_example_sum.to_dtype(candle_core::DType::F64)?.to_vec1()?, count: loss.count() })
    }

    /// Units that run as one batch. An expert's gate is shared by a batch, so experts go one by one.
    fn at_once(&self, key: Key) -> usize {
        match key.kind {
            SiteKind::Experts | SiteKind::Attention | SiteKind::Mlp | SiteKind::Layers => 1,
            _ => (TOKENS_PER_RUN / self.batch.input_ids.elem_count().max(1)).max(1),
        }
    }

    /// Σ over examples of L(without unit) − L, for each unit.
    fn deltas(&self, key: Key, units: &[usize]) -> Result<Vec<f64>> {
        let layer = if key.kind == SiteKind::Layers { units.first().copied().unwrap_or_default() } else { key.layer.unwrap_or_default() };
        let missing = || PruneError::NoSuchUnit { key, unit: layer, available: self.model.n_layers() };
        let x = self.inputs.get(layer).ok_or_else(missing)?;
        let batch = copies(self.batch, units.len())?;
        // Masks and rotary tables of the copies; their embeddings are not needed.
        let (_, context) = self.model.embed(&batch)?;
        let gates = self.gates(key, layer, units)?;
        let mut x = repeat(x, units.len())?;
        for l in layer..self.model.n_layers() {
            x = self.model.block(l, &x, &context, (l == layer).then_some(&gates), &mut ())?;
        }
        let loss = loss(self.model, &batch, &x, &context)?;
        let without: Vec<f64> = loss.per_example_sum.to_dtype(candle_core::DType::F64)?.to_vec1()?;
        Ok(without
            .chunks(self.dense.len().max(1))
            .map(|own| own.iter().zip(&self.dense).map(|(without, with)| without - with).sum())
            .collect())
    }

    /// Ones, with the unit's zero in each copy.
    fn gates(&self, key: Key, layer: usize, units: &[usize]) -> Result<LayerGates> {
        let dims = self.model.layer_dims(layer)?;
        let b = self.dense.len();
        let rows = |width: usize, off: &dyn Fn(usize) -> std::ops::Range<usize>| -> Result<Tensor> {
            let mut values = vec![1f32; units.len() * b * width];
            for (copy, unit) in units.iter().enumerate() {
                for example in 0..b {
                    let start = (copy * b + example) * width;
                    for gate in values.iter_mut().skip(start).take(width).enumerate().filter(|(i, _)| off(*unit).contains(i)) {
                        *gate.1 = 0.0;
                    }
                }
            }
            Ok(Tensor::from_vec(values, (units.len() * b, width), self.model.device())?)
        };
        let nothing = || Tensor::zeros(1, candle_core::DType::F32, self.model.device());
        let mut gates = LayerGates::default();
        match key.kind {
            SiteKind::Heads => gates.heads = Some(rows(dims.q_heads, &|u| u..u + 1)?),
            SiteKind::KvGroups => {
                let r = dims.group_size();
                gates.heads = Some(rows(dims.q_heads, &|u| u * r..(u + 1) * r)?);
            }
            SiteKind::Neurons if dims.experts > 0 => {
                let flat = rows(dims.experts * dims.ffn, &|u| u..u + 1)?;
                gates.neurons = Some(flat.reshape((units.len() * b, dims.experts, dims.ffn))?);
            }
            SiteKind::Neurons => gates.neurons = Some(rows(dims.ffn, &|u| u..u + 1)?),
            SiteKind::Experts => {
                let off = units.first().copied();
                let values: Vec<f32> = (0..dims.experts).map(|e| if Some(e) == off { 0.0 } else { 1.0 }).collect();
                gates.experts = Some(Tensor::from_vec(values, dims.experts, self.model.device())?);
            }
            SiteKind::Attention => gates.attention = Some(nothing()?),
            SiteKind::Mlp => gates.mlp = Some(nothing()?),
            SiteKind::Layers => gates.layer = Some(nothing()?),
            SiteKind::Hidden | SiteKind::Weights => {}
        }
        Ok(gates)
    }
}

fn loss(model: &Transformer, batch: &Batch, x: &Tensor, context: &Context) -> Result<LossOut> {
    if !matches!(model.blueprint().head, prunectl_model::Head::Tokens { .. }) {
        return Ok(model.loss(batch, &model.finish(x, context, &mut ())?)?);
    }
    let scored = model.scored_tokens(batch)?;
    let logits = model.finish_rows(x, context, &scored.rows, &mut ())?;
    Ok(model.token_loss(context.size().0, &scored, &logits)?)
}

fn repeat(t: &Tensor, n: usize) -> Result<Tensor> {
    if n == 1 { Ok(t.clone()) } else { Ok(Tensor::cat(&vec![t; n], 0)?) }
}

/// The batch, n times over.
fn copies(batch: &Batch, n: usize) -> Result<Batch> {
    let labels = match &batch.labels {
        None => None,
        Some(Labels::Tokens(t)) => Some(Labels::Tokens(repeat(t, n)?)),
        Some(Labels::Classes(t)) => Some(Labels::Classes(repeat(t, n)?)),
        Some(Labels::Values(t)) => Some(Labels::Values(repeat(t, n)?)),
        Some(Labels::Spans(t)) => Some(Labels::Spans(repeat(t, n)?)),
    };
    Ok(Batch {
        input_ids: repeat(&batch.input_ids, n)?,
        keep: batch.keep.as_ref().map(|t| repeat(t, n)).transpose()?,
        token_type_ids: batch.token_type_ids.as_ref().map(|t| repeat(t, n)).transpose()?,
        labels,
    })
}
