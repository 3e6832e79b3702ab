//! Parameterized structured pruning: every structure is multiplied by ν(α), which is α, or 0 where |α| is below ε.
//!
//! Schindler et al., Parameterized Structured Pruning for Deep Neural Networks (2019), eq. 2-5: `q = w·ν(α)`, ∂L/∂α the sum of ∂L/∂q ⊙ w over
//! the structure, straight through the threshold; l1 or weight decay on α. Ours is on the unit's output, starts at 1, trains with the learning
//! rate of the weights, and is multiplied into the weights in the end. The amount is what must have gone by then.

use std::collections::BTreeMap;

use prunectl_recipe::plan::Schedule;

use super::bar::{above, and_the_amount};
use super::slimming::sign;
use super::{Backward, Layout, Learned, Learner, Moment, Values, magnitudes};
use crate::decision::Decision;
use crate::error::Result;
use crate::scores::Scores;
use crate::selection::{Request, Shape};
use crate::site::Key;

/// Parameterized structured pruning.
pub(crate) struct Psp {
    /// λ of the regulariser.
    pub l1: Schedule,
    /// ε.
    pub threshold: f64,
    /// Whether the regulariser is ½·α² instead of |α|.
    pub squared: bool,
}

impl Learner for Psp {
    fn name(&self) -> &'static str {
        "psp"
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

    fn exact(&self) -> bool {
        false
    }

    fn gates(&self, layout: &Layout, learned: &Learned, _: &Moment<'_>, _: bool) -> Result<BTreeMap<Key, Vec<f32>>> {
        layout.by_site(&learned.params)
    }

    fn decide(
        &self,
        layout: &Layout,
        learned: &Learned,
        request: &Request<'_>,
        shape: &Shape,
        _: &Moment<'_>,
        finish: bool,
    ) -> Result<Decision> {
        let scores = self.scores(layout, learned)?;
        let decision = above(&scores, request, request.removed, shape, 0.0, &|a| f64::from(a) >= self.threshold)?;
        if finish { and_the_amount(&decision, &scores, request, request.removed, shape) } else { Ok(decision) }
    }

    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)> {
        let mut out = layout.output_sums(backward)?;
        let (lambda, mut penalty) = (moment.value(&self.l1), 0.0);
        for (name, gradient) in &mut out {
            for (g, alpha) in gradient.iter_mut().zip(learned.params.get(name).into_iter().flatten()) {
                let a = f64::from(*alpha);
                penalty += lambda * if self.squared { a * a / 2.0 } else { a.abs() };
                *g += (lambda * if self.squared { a } else { sign(*alpha) }) as f32;
            }
        }
        Ok((out, penalty))
    }
}
