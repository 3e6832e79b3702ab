//! Mask criteria from a weight's first and final value.
//!
//! Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (2019), fig. 3: `|w_f|`, `−|w_f|`, `|w_i|`, `|w_f| − |w_i|`,
//! `|w_f − w_i|`, and two that want both values large (small): a weight's score is the lower of its two ranks in the matrix, which keeps
//! the same weights as the authors' bisection for a corner of the plane.
//!
//! What becomes of the weights (their "mask actions", sec. 4): `fill = zero`: removed ones are zeros, kept ones as they are; `rewind` gives
//! the kept ones their first values. `init` (sec. 4.2): removed ones stand at their first values and don't train. `sign` (sec. 4.1 and 5):
//! removed ones are zeros, kept ones `sign(w_i)·σ`, σ the standard deviation of the matrix's first values, all of them, as in the authors'
//! code.

use candle_core::{DType, Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Value;

use super::{Criterion, Layerwise};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::row::{WEIGHTS, criterion, param, required};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::Sites;
use crate::surgery;

const NAME: &str = "supermask";

/// What becomes of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Zero,
    Init,
    Sign,
}

struct Supermask {
    kind: String,
    fill: Fill,
    snapshot: String,
    initial: Option<Transformer>,
}

impl Supermask {
    fn initial(&self) -> Result<&Transformer> {
        self.initial.as_ref().ok_or_else(|| PruneError::Missing { method: NAME, needs: format!("the snapshot `{}`", self.snapshot) })
    }

    /// A matrix's first values and its values now, f32 on the CPU.
    fn first_and_last(&self, model: &Transformer, slot: &str) -> Result<(Tensor, Tensor)> {
        let (first, last) = (self.initial()?.params().require(slot)?, model.params().require(slot)?);
        if first.dims() != last.dims() {
            return Err(PruneError::Invalid {
                what: "snapshot of supermask",
                found: format!("`{slot}` {:?}", first.dims()),
                expected: format!("{:?}, as the model has now; take the snapshot after compacting", last.dims()),
            });
        }
        let read = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        Ok((read(first)?, read(last)?))
    }
}

/// `sign(w)·σ` of each entry, σ the standard deviation of all of them (of the population, not of a sample).
fn signed_constants(first: &Tensor) -> Result<Tensor> {
    let values = first.flatten_all()?.to_vec1::<f32>()?;
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|w| f64::from(*w)).sum::<f64>() / n;
    let sigma = (values.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let sign = |w: &f32| if *w == 0.0 { 0.0 } else { f64::from(w.signum()) };
    let constants: Vec<f32> = values.iter().map(|w| (sign(w) * sigma) as f32).collect();
    Ok(Tensor::from_vec(constants, first.shape(), &Device::Cpu)?)
}

/// The place of each value in ascending order, as a share of all; equal values in order.
fn ranks(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut order: Vec<(f32, usize)> = values.zip(0..).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut out = vec![0.0; order.len()];
    let n = order.len().max(1) as f64;
    for (rank, (_, i)) in order.into_iter().enumerate() {
        if let Some(r) = out.get_mut(i) {
            *r = (rank as f64 / n) as f32;
        }
    }
    out
}

fn scores(kind: &str, first: &[f32], last: &[f32]) -> Vec<f32> {
    let each = |f: fn(f32, f32) -> f32| first.iter().zip(last).map(|(i, l)| f(*i, *l)).collect();
    let lower = |sign: f32| {
        let (i, f) = (ranks(first.iter().map(|w| sign * w.abs())), ranks(last.iter().map(|w| sign * w.abs())));
        i.iter().zip(&f).map(|(i, f)| i.min(*f)).collect()
    };
    match kind {
        "small_final" => each(|_, f| -f.abs()),
        "large_init" => each(|i, _| i.abs()),
        "large_init_large_final" => lower(1.0),
        "small_init_small_final" => lower(-1.0),
        "magnitude_increase" => each(|i, f| f.abs() - i.abs()),
        "movement" => each(|i, f| (f - i).abs()),
        _ => each(|_, f| f.abs()),
    }
}

impl Criterion for Supermask {
    fn snapshot(&self) -> Option<&str> {
        Some(&self.snapshot)
    }

    fn set_snapshot(&mut self, model: Transformer) {
        self.initial = Some(model);
    }

    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Weights) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores single weights: `m.layers[*].linears.weights`" });
        }
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let mut out = Scores::default();
        for slot in &sites.weights {
            let (first, last) = self.first_and_last(model, slot)?;
            let scores = scores(&self.kind, &flat(&first)?, &flat(&last)?);
            out.weights.insert(slot.clone(), Tensor::from_vec(scores, last.shape(), &Device::Cpu)?);
        }
        out.checked(NAME)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        (self.fill != Fill::Zero).then_some(self)
    }

    fn updates_weights(&self) -> bool {
        self.fill != Fill::Zero
    }
}

/// Not block by block: weights get values, and a decision alone would not say which.
impl Layerwise for Supermask {
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        let scores = self.score(model, request.sites, data, progress)?;
        let decision = select(&scores, request, &Shape::of(model, request.sites)?)?;
        if self.fill == Fill::Init {
            for (slot, keep) in &decision.weights {
                let (first, _) = self.first_and_last(model, slot)?;
                // What was masked before stays as it is.
                let before = removed.held.read(slot)?.map_or_else(|| first.zeros_like(), Ok)?;
                let gone = match removed.weights.read(slot)? {
                    Some(left) => keep.eq(0u8)?.mul(&left.ne(0u8)?)?,
                    None => keep.eq(0u8)?,
                };
                removed.held.insert(slot.clone(), gone.where_cond(&first, &before)?);
            }
        }
        surgery::mask(model, removed, &decision)?;
        if self.fill == Fill::Sign {
            for (slot, keep) in &decision.weights {
                let (first, last) = self.first_and_last(model, slot)?;
                let w = keep.where_cond(&signed_constants(&first)?, &last)?;
                let own = model.params().require(slot)?;
                let w = w.to_device(own.device())?.to_dtype(own.dtype())?;
                model.params_mut().set(slot.clone(), w);
            }
        }
        Ok((decision, scores))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let fill = match args.word("fill")? {
        "init" => Fill::Init,
        "sign" => Fill::Sign,
        _ => Fill::Zero,
    };
    let snapshot = match args.get("initial") {
        Some(Value::Name(name) | Value::Word(name) | Value::Text(name)) => name.clone(),
        other => return Err(ArgError { name: "initial".into(), found: format!("{other:?}"), expected: "a snapshot".into() }),
    };
    Ok(Box::new(Supermask { kind: args.word("kind")?.to_owned(), fill, snapshot, initial: None }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: criterion(
        "supermask",
        "Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (2019), table 1",
        &[
            param(
                "kind",
                Ty::OneOf(&[
                    "large_final",
                    "small_final",
                    "large_init",
                    "large_init_large_final",
                    "small_init_small_final",
                    "magnitude_increase",
                    "movement",
                ]),
                "large_final",
                "The mask criterion, from a weight's first and final values.",
            ),
            required("initial", Ty::Snapshot, "The snapshot that holds the first values."),
            param(
                "fill",
                Ty::OneOf(&["zero", "init", "sign"]),
                "zero",
                "`zero`: removed weights are zeros. `init`: they stand at their first values, and don't train. `sign`: they are zeros, and kept weights become sign(w_i)·σ, σ the deviation of the matrix's first values.",
            ),
        ],
        WEIGHTS,
        "Masks from a weight's first value w_i and final value w_f, such as `|w_f|`, `|w_f| − |w_i|`, `|w_f − w_i|`.\n\n\
         With `fill = zero` kept weights stay as they are; `rewind` gives them their first values (a lottery ticket). `fill = sign` makes the untrained network that the paper calls a supermask.\n\n\
         Mind: its `movement` is |w_f − w_i|, not movement pruning (Sanh 2020). With `fill = init` the model is not sparse.\n\n\
         ```prune\nsnapshot m as first\nprune m.layers[*].linears.weights by 50% using supermask(kind = magnitude_increase, initial = first) { scope = global }\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (first, last) = ([0.5, -2.0, 1.0], [-1.0, 1.5, 0.25]);
        assert_eq!(scores("magnitude_increase", &first, &last), [0.5, -0.5, -0.75]);
        assert_eq!(scores("movement", &first, &last), [1.5, 3.5, 0.75]);
        // |w_i| ranks 0 2 1, |w_f| ranks 1 2 0.
        assert_eq!(scores("large_init_large_final", &first, &last), [0.0, 2.0 / 3.0, 0.0]);
        assert_eq!(scores("small_init_small_final", &first, &last), [1.0 / 3.0, 0.0, 1.0 / 3.0]);
    }
}
