//! LOBSTER: weights that the loss does not feel decay until they can go.
//!
//! Tartaglione et al., LOss-Based SensiTivity rEgulaRization: towards deep sparse neural networks (2022), eq. 6:
//! `w ← w − λ·w·relu(1 − |∂L/∂w|)` after the optimiser's update; the smallest |w| then go, as far as a bisection finds that the loss allows.
//! Here the decay is on the selected weights (those of the selected neurons' groups), neurons are ranked by the ℓ2 norm of their group, the
//! loss is that of the model's task on the step's batches, and the amount bounds each update: before the last one no more goes than the
//! tolerance allows, and the last one has the schedule's last value.

use prunectl_model::Transformer;
use prunectl_recipe::plan::Schedule;

use super::{Backward, Layout, Moment, Shrink, Values};
use crate::criterion::{Criterion, magnitudes};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::scores::Scores;
use crate::site::Sites;

/// LOBSTER.
pub(crate) struct Lobster {
    /// λ.
    pub lambda: Schedule,
    /// Share by which the loss may rise.
    pub tolerance: f64,
}

impl Criterion for Lobster {
    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        magnitudes().score(model, sites, data, progress)
    }

    fn shrinks(&self) -> Option<&dyn Shrink> {
        Some(self)
    }
}

impl Shrink for Lobster {
    fn factors(&self, layout: &Layout, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<Values> {
        let lambda = moment.value(&self.lambda);
        let mut out = layout.members()?;
        for (slot, member) in &mut out {
            let Some(gradient) = backward.gradients.get(slot) else {
                // The loss does not feel it at all.
                member.iter_mut().for_each(|m| *m = 1.0 - lambda as f32 * *m);
                continue;
            };
            for (m, g) in member.iter_mut().zip(gradient) {
                *m = (1.0 - lambda * f64::from(*m) * (1.0 - f64::from(g.abs())).max(0.0)) as f32;
            }
        }
        Ok(out)
    }

    fn tolerance(&self) -> f64 {
        self.tolerance
    }
}
