//! Globally unique movement: movement scores of neurons under a regulariser that presses on neurons whose activations resemble others'.
//!
//! Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), sec. 5:
//! `u_j = Σ_{k≠j} |cos(h_j, h_k)| / (N·v)` with v the share kept, `L += λ(t)·mean |σ(S)·(1 + λ_u·u)|`, one global top-v. As in the authors'
//! code, cosines come from running sums (`(1 − m)·old + m·new`, the first `m·new`), 1e-6 is added to the product of two norms, and a step's
//! regulariser uses the u of the step before (0 at first). λ(t): here λ times the share removed now over the share removed in the end; their
//! code multiplies by the share kept over that kept in the end (`follow = kept`), so that λ(t) falls. As there, λ is 2 where nothing else
//! is said. Where we deviate: a masked neuron is cut at `down` alone, so its activations and its score's gradient
//! stay alive; the authors mask both matrices, and a neuron without a bias could not come back.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_recipe::plan::Schedule;

use super::{Backward, Layout, Learned, Learner, Moment, Values, press};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::Key;

/// Added to the product of two norms, as the authors do.
const EPSILON: f64 = 1e-6;
/// Neurons whose cosines with all others are held at once.
const TILE: usize = 256;

/// What λ(t) follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    /// The share removed now over that removed in the end: from 0 to λ.
    Removed,
    /// The share kept now over that kept in the end, as in the authors' code: down to λ.
    Kept,
    /// λ alone.
    Nothing,
}

/// GUM.
pub(crate) struct Gum {
    pub lr: Schedule,
    /// λ_u.
    pub uniqueness: f64,
    /// λ(t).
    pub penalty: Schedule,
    /// What λ(t) is multiplied by.
    pub follow: Follow,
    /// m: the weight of the newest batch.
    pub memory: f64,
}

/// Running inner products of a site's activations, `[N, N]`.
fn products(key: Key) -> String {
    format!("products/{key}")
}

/// 1 + λ_u·u of a site's neurons.
fn multipliers(key: Key) -> String {
    format!("multipliers/{key}")
}

impl Gum {
    fn weight(&self, moment: &Moment<'_>) -> f64 {
        let lambda = moment.value(&self.penalty);
        match self.follow {
            Follow::Removed if moment.finally > 0.0 => lambda * moment.removed / moment.finally,
            Follow::Kept if moment.finally < 1.0 => lambda * (1.0 - moment.removed) / (1.0 - moment.finally),
            _ => lambda,
        }
    }
}

impl Learner for Gum {
    fn name(&self) -> &'static str {
        "gum"
    }

    fn lr(&self) -> Option<&Schedule> {
        Some(&self.lr)
    }

    fn start(&self, layout: &Layout) -> Result<Learned> {
        Ok(Learned { params: layout.vectors(0.0), aux: Values::new() })
    }

    fn scores(&self, layout: &Layout, learned: &Learned) -> Result<Scores> {
        Scores { sites: layout.by_site(&learned.params)?, ..Scores::default() }.checked(self.name())
    }

    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)> {
        let mut out = layout.group_sums(backward)?;
        let weight = self.weight(moment) / layout.units.len().max(1) as f64;
        let mut penalty = 0.0;
        for key in layout.units.keys() {
            let name = key.to_string();
            let (Some(scores), Some(gradient)) = (learned.params.get(&name), out.get_mut(&name)) else { continue };
            let multiplier = learned.aux.get(&multipliers(*key)).map(Vec::as_slice);
            penalty += press(scores, multiplier, weight, gradient) + press(scores, None, moment.l1, gradient);
        }
        Ok((out, penalty))
    }

    fn observes(&self) -> bool {
        true
    }

    fn observe(&self, layout: &Layout, learned: &mut Learned, activations: &BTreeMap<usize, Tensor>, moment: &Moment<'_>) -> Result<()> {
        let kept = 1.0 - moment.removed;
        for (key, units) in &layout.units {
            let Some(h) = key.layer.and_then(|l| activations.get(&l)) else { continue };
            let n = h.dim(1)?;
            if n != units.len() {
                return Err(PruneError::ScoreShape { key: key.to_string(), found: n, expected: units.len() });
            }
            let h = h.to_dtype(DType::F32)?;
            let new = h.t()?.contiguous()?.matmul(&h.contiguous()?)?.flatten_all()?.to_vec1::<f32>()?;
            let running = learned.aux.entry(products(*key)).or_insert_with(|| vec![0.0; n * n]);
            let m = self.memory as f32;
            running.iter_mut().zip(&new).for_each(|(old, new)| *old = (1.0 - m) * *old + m * new);
            let scale = self.uniqueness / (n as f64 * kept.max(f64::MIN_POSITIVE));
            let u = resemblance(running, n).into_iter().map(|sum| (1.0 + scale * sum) as f32).collect();
            learned.aux.insert(multipliers(*key), u);
        }
        Ok(())
    }
}

/// Σ_{k≠j} |cos(h_j, h_k)| of each column, from the inner products `[n, n]`: tiles of rows on all threads, each row summed in order.
fn resemblance(products: &[f32], n: usize) -> Vec<f64> {
    use rayon::prelude::*;
    let norms: Vec<f64> = products.iter().step_by(n + 1).map(|x| f64::from(*x).max(0.0).sqrt()).collect();
    let row = |(j, row): (usize, &[f32])| -> f64 {
        let own = norms.get(j).copied().unwrap_or_default();
        let others = row.iter().zip(&norms).enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, (x, norm))| (f64::from(*x) / (own * norm + EPSILON)).abs()).sum()
    };
    let tile = |(t, rows): (usize, &[f32])| rows.chunks(n.max(1)).enumerate().map(|(i, r)| row((t * TILE + i, r))).collect::<Vec<f64>>();
    products.par_chunks((n * TILE).max(1)).enumerate().flat_map_iter(tile).collect()
}
