//! `l1(scores)`: pressure on every learned score of the training.
//!
//! Sanh et al., Movement Pruning (2020), sec. 4: the mean over score vectors of the mean of σ(S). The scores are no parameters of the
//! network, so the training loop adds the value and its gradient where it updates them.

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};

use super::{LossInput, LossTerm};
use crate::error::Result;
use crate::row::{other, param};
use crate::schedule::Clock;

struct L1;

impl LossTerm for L1 {
    fn of_scores(&self) -> bool {
        true
    }

    fn count(&self, _: &Transformer, _: &Batch, _: u64) -> Result<f64> {
        Ok(0.0)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        Ok(Tensor::zeros((), DType::F32, input.model.device())?)
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(L1))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        "l1",
        "Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning (2020), sec. 4",
        &[param("of", Ty::OneOf(&["scores"]), "scores", "`scores`: every learned score of this `train`.")],
        "Mean of σ(S) over learned scores: the mean over matrices and sites, each divided by its own size.",
    ),
    build,
};
