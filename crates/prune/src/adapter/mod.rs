//! Adapters: small trained matrices beside a frozen weight, pruned with it and fused into it. One file each, ending in its row.

mod lora;
mod splopa;
mod splora;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_model::{AdapterPart, Transformer, adapter::stem_of};
use prunectl_recipe::catalogue::{Entry, Param, SiteKind, Ty};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{PruneError, Result};
use crate::row::optional;

/// A way to attach trained matrices to frozen weights.
pub trait Adapter: Send + Sync {
    /// The parameters that it adds to a model for these weights, by slot.
    ///
    /// # Errors
    /// A weight that is no matrix, has an adapter already, or does not suit it.
    fn attach(&self, model: &Transformer, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>>;
}

/// What adapters are attached to: whole matrices.
const SITES: &[SiteKind] = &[SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers, SiteKind::Weights];

/// Values from a folder instead of drawn ones; whoever attaches reads it.
const FROM: Param = optional(
    "from",
    Ty::Path,
    "A folder that `save … { format = peft }` or peft wrote: its values, for the same rank and shapes, and those of a head that was saved along.",
);

/// Every adapter that the language knows.
pub static ADAPTERS: &[Entry<dyn Adapter>] = &[lora::ENTRY, splora::ENTRY, splopa::ENTRY];

/// Slots of an attached adapter that train: those of the stems, and shared prototypes.
pub fn adapter_slots(model: &Transformer, stems: &BTreeSet<String>) -> BTreeSet<String> {
    use prunectl_model::adapter::{PROTOTYPE_COLS, PROTOTYPE_ROWS};
    let there = |slot: &String| model.params().get(slot).is_some();
    let parts = [AdapterPart::Rows, AdapterPart::Cols, AdapterPart::Positions];
    let mut out: BTreeSet<String> = stems.iter().flat_map(|stem| parts.map(|p| p.slot(stem))).filter(there).collect();
    if stems.iter().any(|stem| there(&AdapterPart::Positions.slot(stem))) {
        out.extend([PROTOTYPE_COLS, PROTOTYPE_ROWS].map(str::to_owned));
    }
    out
}

/// The stem and shape of each weight, refused where it can't carry an adapter.
fn shapes(model: &Transformer, weights: &BTreeSet<String>) -> Result<Vec<(String, usize, usize)>> {
    let adapted = model.adapted();
    let mut out = Vec::with_capacity(weights.len());
    for slot in weights {
        let (rows, columns) = model.params().require(slot)?.dims2()?;
        let stem = stem_of(slot).to_owned();
        if adapted.contains(&stem) {
            return Err(PruneError::Invalid {
                what: "weight that an adapter is attached to",
                found: format!("`{slot}`, which has one"),
                expected: "one adapter a weight: fuse the first".into(),
            });
        }
        out.push((stem, rows, columns));
    }
    if out.is_empty() { Err(PruneError::NothingSelected) } else { Ok(out) }
}

/// Uniform numbers in ±bound, the stream of their own.
fn uniform(model: &Transformer, shape: &[usize], bound: f64, seed: u64, stream: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32).collect();
    Ok(Tensor::from_vec(values, shape, model.device())?.to_dtype(model.dtype())?)
}

/// The bound of PyTorch's `kaiming_uniform_` with a = √5: 1/√fan_in.
fn kaiming(fan_in: usize) -> f64 {
    1.0 / (fan_in.max(1) as f64).sqrt()
}
