//! Mask criteria from a weight's first and final value.
//!
//! Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (2019), fig. 3: `|w_f|`, `−|w_f|`, `|w_i|`, `|w_f| − |w_i|`,
//! `|w_f − w_i|`, and two that want both values large (small): a weight's score is the lower of its two ranks in the matrix, which keeps
//! the same weights as the authors' bisection for a corner of the plane.

use candle_core::{DType, Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Value;

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{WEIGHTS, criterion, param, required, runs};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "supermask";

struct Supermask {
    kind: String,
    snapshot: String,
    initial: Option<Transformer>,
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
        let missing = || PruneError::Missing { method: NAME, needs: format!("the snapshot `{}`", self.snapshot) };
        let initial = self.initial.as_ref().ok_or_else(missing)?;
        let flat = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let mut out = Scores::default();
        for slot in &sites.weights {
            let (first, last) = (initial.params().require(slot)?, model.params().require(slot)?);
            if first.dims() != last.dims() {
                return Err(PruneError::Invalid {
                    what: "snapshot of supermask",
                    found: format!("`{slot}` {:?}", first.dims()),
                    expected: format!("{:?}, as the model has now; take the snapshot after compacting", last.dims()),
                });
            }
            let scores = scores(&self.kind, &flat(first)?, &flat(last)?);
            out.weights.insert(slot.clone(), Tensor::from_vec(scores, last.shape(), &Device::Cpu)?);
        }
        out.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let fill = args.word("fill")?;
    if fill != "zero" {
        return Err(ArgError {
            name: "fill".into(),
            found: fill.into(),
            expected: "zero: masked weights are zeros in this build; `rewind` gives the kept ones their first values".into(),
        });
    }
    let snapshot = match args.get("initial") {
        Some(Value::Name(name) | Value::Word(name) | Value::Text(name)) => name.clone(),
        other => return Err(ArgError { name: "initial".into(), found: format!("{other:?}"), expected: "a snapshot".into() }),
    };
    Ok(Box::new(Supermask { kind: args.word("kind")?.to_owned(), snapshot, initial: None }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: runs(criterion(
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
                "What removed weights become: zero, their first value, or a signed constant. Only `zero` is carried out.",
            ),
        ],
        WEIGHTS,
        "Masks from a weight's first value w_i and final value w_f, such as `|w_f|`, `|w_f| − |w_i|`, `|w_f − w_i|`.\n\n\
         Mind: its `movement` is |w_f − w_i|, not movement pruning (Sanh 2020).\n\n\
         ```prune\nsnapshot m as first\nprune m.layers[*].linears.weights by 50% using supermask(kind = magnitude_increase, initial = first) { scope = global }\n```",
    )),
    build: Some(build),
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
