//! L0 gates: each unit is multiplied by a hard-concrete variable whose location is learned, under a Lagrangian on the share that is gone.
//!
//! Louizos et al., Learning Sparse Neural Networks through L0 Regularization (2018), eq. 10-12: `s = σ((log u − log(1 − u) + log α)/β)`,
//! `z = clamp(s·(ζ − γ) + γ, 0, 1)`, `P(z > 0) = σ(log α − β·log(−γ/ζ))`; Xia et al., CoFi (2022), eq. 4 and Sheared LLaMA (2024), eq. 2:
//! `L + λ₁·(ŝ − t) + λ₂·(ŝ − t)²`, minimised by log α, maximised by λ. Our t is the share of the selected units' parameters that is to be gone at
//! that step, ŝ the share expected to be, each unit counted by its entries in matrices. One draw a unit serves all micro-batches of a step.
//! Outside the training's own passes a gate is `clamp(σ(log α/β)·(ζ − γ) + γ, 0, 1)`, at the same β, as in CoFi; after the last step the
//! lowest log α go, as many as the amount says, and the gates of the others are multiplied into the weights.

use std::collections::BTreeMap;

use prunectl_recipe::plan::Schedule;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Backward, Layout, Learned, Learner, Moment, Values, sigmoid};
use crate::decision::Decision;
use crate::error::Result;
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::Key;

/// γ and ζ: how far s is stretched beyond 0 and 1.
const STRETCH: (f64, f64) = (-0.1, 1.1);
/// log α of every gate at the start: its deterministic value is 1.
const START: f32 = 2.5;
/// Draws stay away from 0 and 1, where the logarithms end.
const MARGIN: f64 = 1e-6;
/// Where λ₁ and λ₂ stand among the parameters.
const MULTIPLIERS: &str = "multipliers";

/// Hard concrete.
pub(crate) struct HardConcrete {
    pub lr: Schedule,
    /// Share of the selected units' parameters that may stay in the end; the amount's where none is given.
    pub target: Option<f64>,
    /// β.
    pub temperature: f64,
}

impl HardConcrete {
    /// s before the stretch; `noise` is log u − log(1 − u).
    fn soft(&self, log_alpha: f32, noise: f64) -> f64 {
        sigmoid((noise + f64::from(log_alpha)) / self.temperature)
    }

    fn open(&self, log_alpha: f32) -> f64 {
        sigmoid(f64::from(log_alpha) - self.temperature * (-STRETCH.0 / STRETCH.1).ln())
    }

    /// A site's noise of a step. Each site has a stream of its own, so that no selection shifts another's draws.
    fn noise(&self, layout: &Layout, key: Key, moment: &Moment<'_>) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(moment.noise);
        rng.set_stream(layout.units.keys().position(|k| *k == key).unwrap_or_default() as u64);
        let n = layout.units.get(&key).map_or(0, Vec::len);
        let draw = |_| {
            let u = rng.random::<f64>().clamp(MARGIN, 1.0 - MARGIN);
            u.ln() - (1.0 - u).ln()
        };
        (0..n).map(draw).collect()
    }

    /// t now.
    fn wanted(&self, moment: &Moment<'_>) -> f64 {
        match self.target {
            Some(stays) if moment.finally > 0.0 => (1.0 - stays) * moment.removed / moment.finally,
            Some(stays) => 1.0 - stays,
            None => moment.removed,
        }
    }
}

fn stretch(s: f64) -> f64 {
    s * (STRETCH.1 - STRETCH.0) + STRETCH.0
}

impl Learner for HardConcrete {
    fn name(&self) -> &'static str {
        "hard_concrete"
    }

    fn lr(&self) -> Option<&Schedule> {
        Some(&self.lr)
    }

    fn start(&self, layout: &Layout) -> Result<Learned> {
        let mut params = layout.vectors(START);
        params.insert(MULTIPLIERS.to_owned(), vec![0.0; 2]);
        Ok(Learned { params, aux: Values::new() })
    }

    fn scores(&self, layout: &Layout, learned: &Learned) -> Result<Scores> {
        Scores { sites: layout.by_site(&learned.params)?, ..Scores::default() }.checked(self.name())
    }

    /// The gates decide while it trains; in the end the amount does.
    fn decide(
        &self,
        layout: &Layout,
        learned: &Learned,
        request: &Request<'_>,
        shape: &Shape,
        _: &Moment<'_>,
        finish: bool,
    ) -> Result<Decision> {
        if finish {
            return select(&self.scores(layout, learned)?, request, shape);
        }
        let stay = |(key, units): (&Key, &Vec<_>)| (*key, (0..units.len()).filter(|u| !request.removed.has(*key, *u)).collect());
        Ok(Decision { sites: layout.units.iter().map(stay).collect(), ..Decision::default() })
    }

    fn gated(&self) -> bool {
        true
    }

    fn exact(&self) -> bool {
        false
    }

    fn gates(&self, layout: &Layout, learned: &Learned, moment: &Moment<'_>, drawn: bool) -> Result<BTreeMap<Key, Vec<f32>>> {
        let mut out = layout.by_site(&learned.params)?;
        for (key, values) in &mut out {
            let noise = if drawn { self.noise(layout, *key, moment) } else { vec![0.0; values.len()] };
            for (value, noise) in values.iter_mut().zip(noise) {
                *value = stretch(self.soft(*value, noise)).clamp(0.0, 1.0) as f32;
            }
        }
        Ok(out)
    }

    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)> {
        let sums = layout.output_sums(backward)?;
        let (mut all, mut open) = (0.0, 0.0);
        for (key, values) in layout.by_site(&learned.params)? {
            for (value, cost) in values.iter().zip(layout.costs(key)) {
                all += cost;
                open += cost * self.open(*value);
            }
        }
        let excess = if all > 0.0 { 1.0 - open / all - self.wanted(moment) } else { 0.0 };
        let multiplier = |i: usize| learned.params.get(MULTIPLIERS).and_then(|m| m.get(i)).map_or(0.0, |m| f64::from(*m));
        let (first, second) = (multiplier(0), multiplier(1));
        let slope = first + 2.0 * second * excess;
        let mut out = Values::new();
        for (key, values) in layout.by_site(&learned.params)? {
            let by_gate = sums.get(&key.to_string()).map(Vec::as_slice).unwrap_or_default();
            let (noise, costs) = (self.noise(layout, key, moment), layout.costs(key));
            let each = values.iter().zip(by_gate).zip(noise).zip(costs).map(|(((value, g), noise), cost)| {
                let (s, p) = (self.soft(*value, noise), self.open(*value));
                let inside = (0.0..=1.0).contains(&stretch(s));
                let task = if inside { f64::from(*g) * (STRETCH.1 - STRETCH.0) * s * (1.0 - s) / self.temperature } else { 0.0 };
                (task - slope * cost / all * p * (1.0 - p)) as f32
            });
            out.insert(key.to_string(), each.collect());
        }
        // The optimiser descends, the multipliers are to ascend.
        out.insert(MULTIPLIERS.to_owned(), vec![-excess as f32, -(excess * excess) as f32]);
        Ok((out, first * excess + second * excess * excess))
    }
}
