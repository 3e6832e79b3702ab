//! What a teacher's and a student's networks are asked for, and which layers stand for each other.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Context, Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Param, Ty};
use prunectl_recipe::plan::Value;

use super::LossInput;
use crate::calibrate::real_tokens;
use crate::error::{PruneError, Result};
use crate::row::{optional, param, required};

/// The teacher of every term that imitates one.
pub(super) const TEACHER: Param =
    required("teacher", Ty::Model, "The model to imitate: another model, or `frozen(m)`. Its vocabulary must be the student's.");
/// Which layers stand for each other.
pub(super) const MAP: Param = param(
    "map",
    Ty::OneOf(&["same", "uniform", "last"]),
    "uniform",
    "Which teacher layer each student layer imitates where layers were removed: that of the same number, evenly spread ones (the last by the last), or the teacher's last ones.",
);
/// The same, one by one.
pub(super) const LAYERS: Param =
    optional("layers", Ty::List(&Ty::Count), "The teacher's layer (from 0) of each of the student's, instead of `map`.");

/// Reads [`TEACHER`].
pub(super) fn teacher(args: &Args) -> std::result::Result<Value, ArgError> {
    let missing = || ArgError { name: "teacher".into(), found: "nothing".into(), expected: "a model".into() };
    args.get("teacher").cloned().ok_or_else(missing)
}

/// Which teacher layer each student layer imitates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LayerMap {
    Same,
    Uniform,
    Last,
    Listed(Vec<usize>),
}

impl LayerMap {
    pub fn read(args: &Args) -> std::result::Result<Self, ArgError> {
        if let Some(Value::List(items)) = args.get("layers") {
            let layers = items.iter().map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok())).collect::<Option<Vec<_>>>();
            let wrong = || ArgError { name: "layers".into(), found: format!("{items:?}"), expected: "layer numbers".into() };
            return layers.map(Self::Listed).ok_or_else(wrong);
        }
        Ok(match args.word("map")? {
            "same" => Self::Same,
            "last" => Self::Last,
            _ => Self::Uniform,
        })
    }

    /// Of a student of so many layers.
    pub fn of(&self, method: &'static str, student: usize, teacher: usize) -> Result<Vec<usize>> {
        let out: Vec<usize> = match self {
            Self::Same => (0..student).collect(),
            Self::Last => (0..student).map(|i| (teacher + i).saturating_sub(student)).collect(),
            Self::Uniform => (0..student).map(|i| ((i + 1) * teacher).div_ceil(student.max(1)).saturating_sub(1)).collect(),
            Self::Listed(layers) => layers.clone(),
        };
        let wrong = |found: String, expected: String| Err(PruneError::Invalid { what: "layer map of a distillation", found, expected });
        match out.iter().find(|l| **l >= teacher) {
            _ if out.len() != student => wrong(format!("{} layers", out.len()), format!("one for each of the student's {student}")),
            Some(layer) => wrong(format!("layer {layer} in `{method}`"), format!("one of the teacher's {teacher}")),
            None => Ok(out),
        }
    }
}

/// Activations by layer and point.
pub(super) struct Seen {
    wanted: Vec<(usize, Point)>,
    seen: BTreeMap<(usize, Point), Tensor>,
}

impl Tap for Seen {
    fn wants(&self, layer: usize, point: Point) -> bool {
        self.wanted.contains(&(layer, point))
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        self.seen.insert((layer, point), x.clone());
        Ok(())
    }
}

impl Seen {
    /// What a network shows at those places for a batch.
    pub fn of(model: &Transformer, batch: &Batch, wanted: Vec<(usize, Point)>) -> Result<Self> {
        Ok(Self::pass(model, batch, wanted)?.2)
    }

    /// The same with the last block's output.
    pub fn pass(model: &Transformer, batch: &Batch, wanted: Vec<(usize, Point)>) -> Result<(Tensor, Context, Self)> {
        let mut seen = Self { wanted, seen: BTreeMap::new() };
        let (x, context) = model.hidden(batch, &Gates::default(), &mut seen)?;
        Ok((x, context, seen))
    }

    /// One of them; None where the layer has no such place (any more).
    pub fn get(&self, layer: usize, point: Point) -> Option<&Tensor> {
        self.seen.get(&(layer, point))
    }

    /// The same outside the graph, in that type.
    pub fn fixed(&self, layer: usize, point: Point, dtype: DType) -> Result<Option<Tensor>> {
        Ok(self.get(layer, point).map(|x| x.detach().to_dtype(dtype)).transpose()?)
    }
}

impl<'a> LossInput<'a> {
    /// The teacher, checked against the student: the ids must mean the same tokens.
    pub(super) fn imitated(&self, method: &'static str) -> Result<&'a Transformer> {
        let teacher = self.teacher.ok_or(PruneError::Missing { method, needs: "a teacher".into() })?;
        let (found, expected) = (teacher.blueprint().vocab, self.model.blueprint().vocab);
        if found != expected {
            return Err(PruneError::Invalid {
                what: "vocabulary of the teacher",
                found: format!("{found} tokens (`{method}`)"),
                expected: format!("the student's {expected}: both read the same ids"),
            });
        }
        Ok(teacher)
    }

    /// The type that distances are computed in: half of one holds neither their sums nor what stands for −∞.
    pub(super) fn wide(&self) -> DType {
        match self.model.dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            whole => whole,
        }
    }

    /// 1 on real tokens, `[b, s, 1]`, in [`Self::wide`].
    pub(super) fn real(&self) -> Result<Tensor> {
        let dtype = self.wide();
        Ok(match real_tokens(self.batch)? {
            Some(real) => real.to_dtype(dtype)?,
            None => {
                let (b, s) = self.batch.size()?;
                Tensor::ones((b, s, 1), dtype, self.batch.input_ids.device())?
            }
        })
    }
}

/// Real tokens of a batch.
pub(super) fn tokens(batch: &Batch) -> Result<f64> {
    Ok(lengths(batch)?.iter().sum())
}

/// Real tokens of each example.
pub(super) fn lengths(batch: &Batch) -> Result<Vec<f64>> {
    let (b, s) = batch.size()?;
    match &batch.keep {
        None => Ok(vec![s as f64; b]),
        Some(keep) => Ok(keep.to_dtype(DType::F64)?.sum(1)?.to_vec1::<f64>()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_by_hand() {
        let of = |map: LayerMap, s, t| map.of("hidden", s, t).unwrap();
        assert_eq!(of(LayerMap::Uniform, 4, 12), [2, 5, 8, 11]);
        assert_eq!(of(LayerMap::Uniform, 5, 6), [1, 2, 3, 4, 5]);
        assert_eq!(of(LayerMap::Uniform, 3, 3), [0, 1, 2]);
        assert_eq!(of(LayerMap::Last, 2, 6), [4, 5]);
        assert_eq!(of(LayerMap::Same, 2, 6), [0, 1]);
        assert!(LayerMap::Same.of("hidden", 3, 2).is_err());
        assert!(LayerMap::Listed(vec![0]).of("hidden", 2, 6).is_err());
        assert!(LayerMap::Listed(vec![0, 6]).of("hidden", 2, 6).is_err());
    }
}
