//! Sums over the data of what a gate's gradient ∂L/∂ξ says, from one backward pass a batch: every example has its own gates, so its
//! gradient comes out alone. No weight is a variable. Shared by loss_delta, fisher and group_fisher.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use prunectl_kernels::threads::side_by_side;
use prunectl_model::{Batch, Gates, LayerGates, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use rayon::prelude::*;

use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

/// How gradients become a unit's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// |∂L(x)/∂ξ|, the mean over examples: Michel et al.
    Example,
    /// |∂L_b/∂ξ_t| of each token t, L_b the mean of the batch: the authors' code.
    Token,
    /// |∂L_b/∂ξ|: transformers' bertology.
    Batch,
    /// (∂L(x)/∂ξ)², the mean over examples: Fisher.
    Square,
    /// The sum of each example's part of ∂L_b/∂ξ, squared: the Group Fisher authors' code.
    SquareOfBatchMean,
}

impl Of {
    /// Whether an example's share does not depend on the other examples of its batch.
    fn example_by_example(self) -> bool {
        matches!(self, Self::Example | Self::Square)
    }
}

/// Tokens of the pieces of a batch that pass side by side.
const TOKENS_PER_PIECE: usize = 1024;

/// One score a unit; `method` names who asks.
pub(super) fn score(
    method: &'static str,
    of: Of,
    model: &Transformer,
    sites: &Sites,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Scores> {
    if let Some(kind) = sites.kinds().into_iter().find(|k| matches!(k, SiteKind::Weights | SiteKind::Hidden)) {
        return Err(PruneError::Site { method, kind, hint: "a gate can't switch these off; use `taylor` or `magnitude`" });
    }
    let by_token = |k: &SiteKind| matches!(k, SiteKind::Heads | SiteKind::KvGroups);
    if let Some(kind) = sites.kinds().into_iter().find(|k| of == Of::Token && !by_token(k)) {
        return Err(PruneError::Site { method, kind, hint: "`quirk = \"reference\"` is defined for heads and KV groups" });
    }
    let mut sums = Sums { sites: BTreeMap::new(), examples: 0, tokens: 0 };
    for key in sites.units.keys() {
        sums.sites.insert(*key, vec![0.0; count(model, *key)?]);
    }
    // A gate on an expert is shared by its batch: examples run one by one.
    let one_by_one = sites.kinds().contains(&SiteKind::Experts);
    let mut done = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        if one_by_one && of.example_by_example() {
            for row in 0..batch.size()?.0 {
                sums.add(of, model, &batch.rows(&[row as u32])?)?;
            }
        } else {
            sums.add(of, model, &batch)?;
        }
        done += 1;
        progress.advance(done, data.len_hint().map_or(done, |n| n as u64), method);
    }
    if sums.examples == 0 {
        return Err(PruneError::NoData { method, batches: done as usize });
    }
    Ok(sums.scores(of, model))
}

struct Sums {
    sites: BTreeMap<Key, Vec<f64>>,
    /// Examples with a scored token.
    examples: usize,
    /// Real tokens.
    tokens: usize,
}

/// The gates of one layer as variables.
struct Handles {
    heads: Option<Var>,
    neurons: Option<Var>,
    experts: Option<Var>,
    attention: Option<Var>,
    mlp: Option<Var>,
    layer: Option<Var>,
}

impl Sums {
    fn wants(&self, kind: SiteKind, layer: usize) -> bool {
        self.sites.contains_key(&Key::of(kind, layer))
    }

    fn gates(&self, of: Of, model: &Transformer, batch: &Batch, layer: usize) -> Result<Handles> {
        let (b, s) = batch.size()?;
        let d = model.layer_dims(layer)?;
        let ones = |shape: &[usize]| Var::ones(shape, model.dtype(), model.device());
        let make = |wanted: bool, shape: &[usize]| wanted.then(|| ones(shape)).transpose();
        let heads: &[usize] = if of == Of::Token { &[b, s, d.q_heads] } else { &[b, d.q_heads] };
        let neurons: &[usize] = if d.experts > 0 { &[b, d.experts, d.ffn] } else { &[b, d.ffn] };
        Ok(Handles {
            heads: make(self.wants(SiteKind::Heads, layer) || self.wants(SiteKind::KvGroups, layer), heads)?,
            neurons: make(self.wants(SiteKind::Neurons, layer), neurons)?,
            experts: make(self.wants(SiteKind::Experts, layer), &[d.experts])?,
            attention: make(self.wants(SiteKind::Attention, layer), &[b])?,
            mlp: make(self.wants(SiteKind::Mlp, layer), &[b])?,
            layer: make(self.wants(SiteKind::Layers, layer), &[b])?,
        })
    }

    /// Adds a batch; where its examples count one by one, pieces of it pass side by side.
    fn add(&mut self, of: Of, model: &Transformer, batch: &Batch) -> Result<()> {
        let (examples, length) = batch.size()?;
        let rows = (TOKENS_PER_PIECE / length.max(1)).max(1);
        if !of.example_by_example() || rows >= examples || !model.device().is_cpu() {
            let sums = self.of_batch(of, model, batch)?;
            self.merge(sums);
            return Ok(());
        }
        let all: Vec<u32> = (0..examples as u32).collect();
        for sums in side_by_side(all.par_chunks(rows), |rows| self.of_batch(of, model, &batch.rows(rows)?))? {
            self.merge(sums);
        }
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.examples += other.examples;
        self.tokens += other.tokens;
        for (key, more) in other.sites {
            if let Some(sums) = self.sites.get_mut(&key) {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
    }

    /// The sums of one batch alone.
    fn of_batch(&self, of: Of, model: &Transformer, batch: &Batch) -> Result<Self> {
        let mut own = Self { sites: self.sites.iter().map(|(k, s)| (*k, vec![0.0; s.len()])).collect(), examples: 0, tokens: 0 };
        let mut handles = Vec::with_capacity(model.n_layers());
        for layer in 0..model.n_layers() {
            handles.push(self.gates(of, model, batch, layer)?);
        }
        let tensor = |v: &Option<Var>| v.as_ref().map(|v| v.as_tensor().clone());
        let layers = handles.iter().map(|h| LayerGates {
            heads: tensor(&h.heads),
            neurons: tensor(&h.neurons),
            potentials: None,
            experts: tensor(&h.experts),
            attention: tensor(&h.attention),
            mlp: tensor(&h.mlp),
            layer: tensor(&h.layer),
        });
        let loss = model.forward_loss(batch, &Gates { layers: layers.collect(), hidden: None }, &mut ())?;
        let live = loss.per_example_count.iter().filter(|n| **n > 0).count();
        if live == 0 {
            return Ok(own);
        }
        // The codes behind the quirks differentiate the mean of the batch, the paper the mean of each example.
        let total = if of.example_by_example() { loss.per_example_mean()?.sum_all()? } else { loss.mean()? };
        let grads = total.backward()?;
        own.examples += live;
        own.tokens += match &batch.keep {
            Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?.iter().filter(|k| **k != 0).count(),
            None => batch.input_ids.elem_count(),
        };
        for (key, sums) in &mut own.sites {
            let layers = match key.layer {
                Some(layer) => layer..layer + 1,
                None => 0..model.n_layers(),
            };
            for layer in layers {
                let Some(h) = handles.get(layer) else { continue };
                let d = model.layer_dims(layer)?;
                let (var, group) = match key.kind {
                    SiteKind::Heads => (&h.heads, 1),
                    SiteKind::KvGroups => (&h.heads, d.group_size().max(1)),
                    SiteKind::Neurons => (&h.neurons, 1),
                    SiteKind::Experts => (&h.experts, 1),
                    SiteKind::Attention => (&h.attention, 1),
                    SiteKind::Mlp => (&h.mlp, 1),
                    SiteKind::Layers => (&h.layer, 1),
                    SiteKind::Hidden | SiteKind::Weights => (&None, 1),
                };
                let Some(var) = var else { continue };
                // A unit that the loss does not depend on has no gradient: its share is 0.
                let Some(g) = grads.get(var.as_tensor()) else { continue };
                let start = if key.kind == SiteKind::Layers { layer } else { 0 };
                let width = if key.kind == SiteKind::Layers { 1 } else { sums.len() };
                for (sum, share) in sums.iter_mut().skip(start).zip(shares(of, g, width, group)?) {
                    *sum += share;
                }
            }
        }
        Ok(own)
    }

    fn scores(self, of: Of, model: &Transformer) -> Scores {
        let mut out = Scores::default();
        // The authors divide the last layer of a classifier by examples: only the first token has a gradient there.
        let tokens_everywhere = matches!(model.blueprint().head, prunectl_model::Head::Tokens { .. });
        for (key, sums) in self.sites {
            let last = key.layer.is_some_and(|l| l + 1 == model.n_layers());
            let n = match of {
                Of::Example | Of::Square => self.examples,
                Of::SquareOfBatchMean => 1,
                Of::Token if last && !tokens_everywhere => self.examples,
                Of::Token | Of::Batch => self.tokens,
            };
            out.sites.insert(key, sums.into_iter().map(|s| (s / n.max(1) as f64) as f32).collect());
        }
        out
    }
}

/// What each unit gains: rows are examples (or tokens, or everything at once); `group` neighbours sum before the absolute value or the square.
fn shares(of: Of, g: &Tensor, width: usize, group: usize) -> Result<Vec<f64>> {
    let g = g.to_dtype(DType::F64)?.reshape(((), width * group))?;
    let g = if of == Of::Batch { g.sum_keepdim(0)? } else { g };
    let mut out = vec![0.0; width];
    for row in g.to_vec2::<f64>()? {
        for (sum, unit) in out.iter_mut().zip(row.chunks(group)) {
            let g = unit.iter().sum::<f64>();
            *sum += if matches!(of, Of::Square | Of::SquareOfBatchMean) { g * g } else { g.abs() };
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Gradients (1, −2) and (−3, 2) of two examples: means of absolute values (over two) 4 and 4 before dividing, absolute values of the
    /// sums 2 and 0, squares 10 and 8; of both as one group the sums −1 and −1 come first.
    #[test]
    fn by_hand() {
        let g = Tensor::new(&[[1f64, -2.0], [-3.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(shares(Of::Example, &g, 2, 1).unwrap(), [4.0, 4.0]);
        assert_eq!(shares(Of::Batch, &g, 2, 1).unwrap(), [2.0, 0.0]);
        assert_eq!(shares(Of::Square, &g, 2, 1).unwrap(), [10.0, 8.0]);
        assert_eq!(shares(Of::Example, &g, 1, 2).unwrap(), [2.0]);
        assert_eq!(shares(Of::Square, &g, 1, 2).unwrap(), [2.0]);
    }
}
