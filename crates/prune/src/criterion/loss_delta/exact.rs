//! L(without the unit) − L, unit by unit, over all the data.
//!
//! What does not depend on the unit is computed once: the pass up to its layer, and in the layer the sublayer that holds it. Heads and
//! neurons add to what their sublayer gives, so without one it gives what it gave, less the unit's own part. Several units of a layer run
//! as one batch, copies of the examples, and such batches run side by side, one on each thread.

use candle_core::{DType, Tensor};
use prunectl_kernels as kernels;
use prunectl_model::{Batch, Context, Gates, Head, Labels, LayerGates, LossOut, ModelError, Point, Shortcuts, Tap, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::NAME;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

/// Tokens of one batched run of ablations: enough for efficient products, little enough that a run on each thread stays in the caches.
pub(super) const TOKENS_PER_RUN: usize = 4096;

pub(super) fn score(model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
    let mut sums: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    for key in sites.units.keys() {
        sums.insert(*key, vec![0.0; count(model, *key)?]);
    }
    let work: u64 = sites.units.values().map(|u| u.len() as u64).sum();
    let total = work * data.len_hint().unwrap_or(1) as u64;
    let (mut scored, mut batches) = (0, 0);
    let done = AtomicU64::new(0);
    data.reset()?;
    while let Some(batch) = data.next()? {
        batches += 1;
        let run = Run::new(model, &batch, sites)?;
        scored += run.count;
        if run.count == 0 {
            continue;
        }
        let mut chunks = Vec::new();
        for (key, units) in &sites.units {
            let units: Vec<usize> = units.iter().collect();
            chunks.extend(units.chunks(run.at_once(*key)).map(|chunk| (*key, chunk.to_vec())));
        }
        let measure = |(key, chunk): &(Key, Vec<usize>)| -> Result<Vec<f64>> {
            progress.check()?;
            let deltas = run.deltas(*key, chunk)?;
            let now = done.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
            progress.advance(now, total.max(now), NAME);
            Ok(deltas)
        };
        // Other devices are busy with one run.
        let deltas: Vec<Vec<f64>> = if model.device().is_cpu() {
            chunks.par_iter().map(measure).collect::<Result<_>>()?
        } else {
            chunks.iter().map(measure).collect::<Result<_>>()?
        };
        for ((key, chunk), deltas) in chunks.iter().zip(deltas) {
            let Some(sums) = sums.get_mut(key) else { continue };
            for (unit, delta) in chunk.iter().zip(deltas) {
                if let Some(sum) = sums.get_mut(*unit) {
                    *sum += delta;
                }
            }
        }
    }
    if scored == 0 {
        return Err(PruneError::NoData { method: NAME, batches });
    }
    let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / scored as f64) as f32).collect();
    Ok(Scores { sites: sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() })
}

/// What the sublayers of the dense pass took in and gave, where units of theirs are measured.
struct Parts<'a> {
    sites: &'a Sites,
    dense: &'a Transformer,
    seen: BTreeMap<(usize, Point), Tensor>,
}

impl Parts<'_> {
    fn holds(&self, layer: usize, kind: SiteKind) -> bool {
        self.sites.units.contains_key(&Key::of(kind, layer))
    }
}

impl Tap for Parts<'_> {
    fn wants(&self, layer: usize, point: Point) -> bool {
        match point {
            Point::HeadContext | Point::AttentionOutput => self.holds(layer, SiteKind::Heads) || self.holds(layer, SiteKind::KvGroups),
            Point::Intermediate | Point::MlpOutput => {
                self.holds(layer, SiteKind::Neurons) && self.dense.dims().get(layer).is_some_and(|d| d.experts == 0)
            }
            _ => false,
        }
    }

    fn see(&mut self, layer: usize, point: Point, activation: &Tensor) -> std::result::Result<(), ModelError> {
        self.seen.insert((layer, point), activation.detach());
        Ok(())
    }
}

/// One batch, with the input of every block.
struct Run<'a> {
    model: &'a Transformer,
    batch: &'a Batch,
    context: Context,
    inputs: Vec<Tensor>,
    parts: BTreeMap<(usize, Point), Tensor>,
    /// Loss of each example with every unit there.
    dense: Vec<f64>,
    count: usize,
}

impl<'a> Run<'a> {
    fn new(model: &'a Transformer, batch: &'a Batch, sites: &Sites) -> Result<Self> {
        let (mut x, context) = model.embed(batch)?;
        let mut inputs = Vec::with_capacity(model.n_layers());
        let mut parts = Parts { sites, dense: model, seen: BTreeMap::new() };
        for layer in 0..model.n_layers() {
            inputs.push(x.clone());
            x = model.block(layer, &x, &context, None, &mut parts)?;
        }
        // The last block once more, as it runs without a unit.
        let last = model.n_layers().saturating_sub(1);
        let x = inputs.get(last).unwrap_or(&x);
        let (x, own) = model.blocks(last, x, &context, &Gates::default(), Shortcuts::default(), &mut ())?;
        let loss = loss(model, batch, &x, &own)?;
        let dense = loss.per_example_sum.to_dtype(DType::F64)?.to_vec1()?;
        Ok(Self { model, batch, context, inputs, parts: parts.seen, dense, count: loss.count() })
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
        let x = repeat(self.inputs.get(layer).ok_or_else(missing)?, units.len())?;
        let context = self.context.repeated(units.len())?;
        let (attention, mlp) = self.sublayers(key, layer, units)?;
        let mut gates = Gates::default();
        if attention.is_none() && mlp.is_none() {
            gates.layers = vec![LayerGates::default(); layer];
            gates.layers.push(self.gates(key, layer, units)?);
        }
        let shortcuts = Shortcuts::new(attention.as_ref(), mlp.as_ref());
        let (x, context) = self.model.blocks(layer, &x, &context, &gates, shortcuts, &mut ())?;
        let loss = loss(self.model, &copies(self.batch, units.len())?, &x, &context)?;
        let without: Vec<f64> = loss.per_example_sum.to_dtype(DType::F64)?.to_vec1()?;
        Ok(without
            .chunks(self.dense.len().max(1))
            .map(|own| own.iter().zip(&self.dense).map(|(without, with)| without - with).sum())
            .collect())
    }

    /// What the attention sublayer or the MLP gives without each of the units, one copy after the other, where that follows from what
    /// they give with it.
    fn sublayers(&self, key: Key, layer: usize, units: &[usize]) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dims = self.model.layer_dims(layer)?;
        let (points, stem, width) = match key.kind {
            SiteKind::Heads => ((Point::HeadContext, Point::AttentionOutput), "attention.o", dims.head_dim),
            SiteKind::KvGroups => ((Point::HeadContext, Point::AttentionOutput), "attention.o", dims.head_dim * dims.group_size()),
            SiteKind::Neurons => ((Point::Intermediate, Point::MlpOutput), "mlp.down", 1),
            _ => return Ok((None, None)),
        };
        let (Some(input), Some(output)) = (self.parts.get(&(layer, points.0)), self.parts.get(&(layer, points.1))) else {
            return Ok((None, None));
        };
        let weight = self.model.params().require(&format!("layers.{layer}.{stem}.weight"))?;
        let mut without = Vec::with_capacity(units.len());
        for unit in units {
            without.push(less(input, output, weight, unit * width..(unit + 1) * width)?);
        }
        let without = Some(Tensor::cat(&without, 0)?);
        Ok(if key.kind == SiteKind::Neurons { (None, without) } else { (without, None) })
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

/// What a projection with that weight `[out, in]` gave for `input`, less the part of some of its inputs.
fn less(input: &Tensor, output: &Tensor, weight: &Tensor, inputs: Range<usize>) -> Result<Tensor> {
    let (b, s, out) = output.dims3()?;
    let part = input.reshape((b, s, ()))?.narrow(2, inputs.start, inputs.len())?.contiguous()?;
    let weight = weight.narrow(1, inputs.start, inputs.len())?.contiguous()?.neg()?;
    Ok(kernels::add(output, &kernels::linear(&part, &weight, None)?.reshape((b, s, out))?)?)
}

fn loss(model: &Transformer, batch: &Batch, x: &Tensor, context: &Context) -> Result<LossOut> {
    if !matches!(model.blueprint().head, Head::Tokens { .. }) {
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
