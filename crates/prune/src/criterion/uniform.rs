//! Uniform: the baseline that channel pruning must beat, an equal share of every layer.
//!
//! Liu et al., Rethinking the Value of Network Pruning (2019), sec. 3: which units stay does not matter there, so the highest indices go. A
//! unit's score is how far from the end of its layer (its expert, its matrix) it stands, in shares: a global ranking takes equal shares too.

use candle_core::{Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};
use prunectl_recipe::plan::Scope;

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::row::{ALL_SITES, criterion};
use crate::scores::Scores;
use crate::site::Sites;
use crate::units::count;

struct Uniform;

/// (n − i)/n of each of n units, lower behind.
fn from_the_end(n: usize) -> impl Iterator<Item = f32> {
    (0..n).map(move |i| ((n - i) as f64 / n as f64) as f32)
}

impl Criterion for Uniform {
    fn default_scope(&self, kind: SiteKind) -> Scope {
        match kind {
            SiteKind::Weights => Scope::Matrix,
            SiteKind::Layers | SiteKind::Hidden | SiteKind::Attention | SiteKind::Mlp => Scope::Global,
            _ => Scope::Layer,
        }
    }

    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        let mut out = Scores::default();
        for key in sites.units.keys() {
            let d = key.layer.and_then(|l| model.dims().get(l)).copied().unwrap_or_default();
            let n = count(model, *key)?;
            let scores = match (key.kind, key.layer) {
                (SiteKind::Neurons, _) => (0..d.experts.max(1)).flat_map(|_| from_the_end(d.ffn)).collect(),
                // One unit a layer: the last layers go first.
                (SiteKind::Attention | SiteKind::Mlp, Some(layer)) => vec![1.0 / (layer as f32 + 1.0); n],
                _ => from_the_end(n).collect(),
            };
            out.sites.insert(*key, scores);
        }
        for slot in &sites.weights {
            let shape = model.params().require(slot)?.shape().clone();
            let scores: Vec<f32> = from_the_end(shape.elem_count()).collect();
            out.weights.insert(slot.clone(), Tensor::from_vec(scores, shape, &Device::Cpu)?);
        }
        out.checked("uniform")
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Uniform))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: criterion(
        "uniform",
        "the baseline of Liu et al., Rethinking the Value of Network Pruning (2019)",
        &[],
        ALL_SITES,
        "An equal share of every layer, the highest indices first: what channel pruning must beat.\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 50% using uniform()\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        assert_eq!(super::from_the_end(4).collect::<Vec<_>>(), [1.0, 0.75, 0.5, 0.25]);
    }
}
