//! Slimming: a gate γ on every unit, pressed by l1 while the network trains; small |γ| go.
//!
//! Liu et al., Learning Efficient Convolutional Networks through Network Slimming (2017), eq. 1: `L + λ Σ |γ|`, by the subgradient
//! `λ·sign(γ)` with sign(0) = 0. Their γ is a batch norm's scale; a transformer has none at a head or neuron, so ours multiplies the unit's
//! output, starts at 1, trains with the learning rate of the weights, and is multiplied into the weights in the end.

use std::collections::BTreeMap;

use prunectl_recipe::plan::Schedule;

use super::{Backward, Layout, Learned, Learner, Moment, Values, magnitudes};
use crate::error::Result;
use crate::scores::Scores;
use crate::site::Key;

/// Slimming.
pub(crate) struct Slimming {
    /// λ.
    pub l1: Schedule,
}

impl Learner for Slimming {
    fn name(&self) -> &'static str {
        "slimming"
    }

    fn lr(&self) -> Option<&Schedule> {
        None
    }

    fn start(&self, layout: &Layout) -> Result<Learned> {
        Ok(Learned { params: layout.vectors(1.0), aux: Values::new() })
    }

    fn scores(&self, layout: &Layout, learned: &Learned) -> Result<Scores> {
        magnitudes(self.name(), layout, learned)
    }

    fn gated(&self) -> bool {
        true
    }

    fn gates(&self, layout: &Layout, learned: &Learned, _: &Moment<'_>, _: bool) -> Result<BTreeMap<Key, Vec<f32>>> {
        layout.by_site(&learned.params)
    }

    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)> {
        let mut out = layout.output_sums(backward)?;
        let (lambda, mut penalty) = (moment.value(&self.l1), 0.0);
        for (name, gradient) in &mut out {
            for (g, gamma) in gradient.iter_mut().zip(learned.params.get(name).into_iter().flatten()) {
                penalty += lambda * f64::from(gamma.abs());
                *g += (lambda * sign(*gamma)) as f32;
            }
        }
        Ok((out, penalty))
    }
}

/// sign, 0 at 0.
pub(super) fn sign(x: f32) -> f64 {
    if x == 0.0 { 0.0 } else { f64::from(x.signum()) }
}
