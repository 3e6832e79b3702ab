//! Movement and learned scores: S follows the straight-through gradient, ∂L/∂S = ∂L/∂W′ ⊙ W, and the highest S stay.
//!
//! Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning (2020), eq. 1-3 and table 1 (hard: top-v; soft: σ(S) > τ with λ·mean σ(S));
//! Lagunas et al., Block Pruning For Faster Transformers (2021), sec. 3: one score for a block, row or column, its gradient the sum over the
//! entries. On heads, groups and neurons one score stands for the unit, its gradient the sum over the unit's group.
//! Our amount is the share removed, theirs the share kept; blocks, rows and columns are counted, not their entries. Soft: as theirs, half a
//! percent of every matrix stays whatever the bar. In their code one scheduler moves the rates of weights and scores; here the scores' rate is
//! what the recipe says, a constant or a schedule of its own.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Schedule};

use super::bar::{above, and_the_amount};
use super::{Backward, Layout, Learned, Learner, Moment, Values, press, sigmoid};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};

/// Share of a matrix that soft movement leaves whatever the bar.
const SOFT_FLOOR: f64 = 0.005;

/// What one score stands for in a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Granularity {
    Weight,
    Block {
        rows: usize,
        columns: usize,
    },
    Row,
    Column,
    /// Units of that kind; KV groups count as heads.
    Unit(SiteKind),
}

impl Granularity {
    /// Height and width of a block in a matrix.
    fn block(self, (rows, columns): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Weight | Self::Unit(_) => (1, 1),
            Self::Block { rows, columns } => (rows, columns),
            Self::Row => (1, columns),
            Self::Column => (rows, 1),
        }
    }
}

/// How scores decide.
#[derive(Debug, Clone)]
pub(crate) enum Bar {
    /// The highest stay, as many as the amount says.
    Hard,
    /// σ(S) > τ stays.
    Soft(Schedule),
}

/// Movement, and learned scores of any granularity.
pub(crate) struct ScoreLearner {
    pub name: &'static str,
    pub lr: Schedule,
    pub granularity: Granularity,
    pub bar: Bar,
    /// λ of mean σ(S).
    pub penalty: Schedule,
}

impl ScoreLearner {
    /// Scores a matrix has, in both dimensions.
    fn grid(&self, layout: &Layout, slot: &str) -> Result<(usize, usize)> {
        let shape = layout.shape(slot)?;
        let (h, w) = self.granularity.block(shape);
        if h == 0 || w == 0 || !shape.0.is_multiple_of(h) || !shape.1.is_multiple_of(w) {
            return Err(PruneError::Invalid {
                what: "block of learned scores",
                found: format!("{h} × {w}"),
                expected: format!("a size that divides the {} × {} entries of `{slot}`", shape.0, shape.1),
            });
        }
        Ok((shape.0 / h, shape.1 / w))
    }

    /// Σ over each block of a matrix; `entries` is row-major.
    fn reduce(&self, layout: &Layout, slot: &str, entries: impl Iterator<Item = f64>) -> Result<Vec<f32>> {
        let (rows, columns) = layout.shape(slot)?;
        let (h, w) = self.granularity.block((rows, columns));
        let (gr, gc) = self.grid(layout, slot)?;
        let mut sums = vec![0.0f64; gr * gc];
        for (i, x) in entries.enumerate() {
            if let Some(sum) = sums.get_mut((i / columns.max(1)) / h * gc + (i % columns.max(1)) / w) {
                *sum += x;
            }
        }
        Ok(sums.into_iter().map(|s| s as f32).collect())
    }

    /// One value a block, repeated for its entries.
    fn expand<T: Copy + Default>(&self, layout: &Layout, slot: &str, values: &[T]) -> Result<Vec<T>> {
        let (rows, columns) = layout.shape(slot)?;
        let (h, w) = self.granularity.block((rows, columns));
        let (_, gc) = self.grid(layout, slot)?;
        let at = |i: usize| values.get((i / columns.max(1)) / h * gc + (i % columns.max(1)) / w).copied().unwrap_or_default();
        Ok((0..rows * columns).map(at).collect())
    }

    /// Scores with one entry a block.
    fn grids(&self, layout: &Layout, learned: &Learned) -> Result<Scores> {
        let mut out = Scores { sites: layout.by_site(&learned.params)?, ..Scores::default() };
        for slot in &layout.weights {
            let values = learned.params.get(slot).ok_or_else(|| PruneError::NoScores { key: slot.clone() })?;
            out.weights.insert(slot.clone(), Tensor::from_slice(values, self.grid(layout, slot)?, &Device::Cpu)?);
        }
        out.checked(self.name)
    }

    /// What was masked before, seen in blocks: a block is gone when all of it is.
    fn base(&self, layout: &Layout, removed: &Removed) -> Result<Removed> {
        let mut out = Removed { units: removed.units.clone(), ..Removed::default() };
        for slot in &layout.weights {
            let Some(keep) = removed.weights.get(slot) else { continue };
            let keep = keep.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?;
            let left = self.reduce(layout, slot, keep.iter().map(|k| f64::from(*k != 0)))?;
            let left: Vec<u8> = left.iter().map(|n| u8::from(*n > 0.0)).collect();
            out.weights.insert(slot.clone(), Tensor::from_vec(left, self.grid(layout, slot)?, &Device::Cpu)?);
        }
        Ok(out)
    }

    /// A decision on blocks as one on entries; entries that were masked before stay so.
    fn entries(&self, layout: &Layout, mut decision: Decision, removed: &Removed) -> Result<Decision> {
        if matches!(self.granularity, Granularity::Weight | Granularity::Unit(_)) {
            return Ok(decision);
        }
        for (slot, keep) in &std::mem::take(&mut decision.weights) {
            let kept = self.expand(layout, slot, &keep.flatten_all()?.to_vec1::<u8>()?)?;
            let mut keep = Tensor::from_vec(kept, layout.shape(slot)?, &Device::Cpu)?;
            if let Some(before) = removed.weights.get(slot) {
                keep = keep.mul(&before.to_dtype(DType::U8)?)?;
            }
            decision.weights.insert(slot.clone(), keep);
        }
        Ok(decision)
    }
}

impl Learner for ScoreLearner {
    fn name(&self) -> &'static str {
        self.name
    }

    fn lr(&self) -> Option<&Schedule> {
        Some(&self.lr)
    }

    fn start(&self, layout: &Layout) -> Result<Learned> {
        let wrong = |kind, hint| Err(PruneError::Site { method: self.name, kind, hint });
        let kinds = layout.units.keys().map(|k| k.kind).chain(layout.weights.first().map(|_| SiteKind::Weights));
        for kind in kinds {
            let weights = kind == SiteKind::Weights;
            match self.granularity {
                Granularity::Unit(SiteKind::Heads) if matches!(kind, SiteKind::Heads | SiteKind::KvGroups) => {}
                Granularity::Unit(own) if own == kind => {}
                Granularity::Unit(_) => return wrong(kind, "select the heads or neurons that `granularity` names"),
                Granularity::Block { .. } | Granularity::Row | Granularity::Column if !weights => {
                    return wrong(kind, "blocks, rows and columns are cut out of `.linears.weights`; leave `granularity` out");
                }
                _ => {}
            }
        }
        let mut params = layout.vectors(0.0);
        for slot in &layout.weights {
            let (rows, columns) = self.grid(layout, slot)?;
            params.insert(slot.clone(), vec![0.0; rows * columns]);
        }
        Ok(Learned { params, aux: Values::new() })
    }

    fn scores(&self, layout: &Layout, learned: &Learned) -> Result<Scores> {
        let mut out = self.grids(layout, learned)?;
        for (slot, values) in &std::mem::take(&mut out.weights) {
            let flat = self.expand(layout, slot, &values.flatten_all()?.to_vec1::<f32>()?)?;
            out.weights.insert(slot.clone(), Tensor::from_vec(flat, layout.shape(slot)?, &Device::Cpu)?);
        }
        Ok(out)
    }

    fn decide(
        &self,
        layout: &Layout,
        learned: &Learned,
        request: &Request<'_>,
        shape: &Shape,
        moment: &Moment<'_>,
        finish: bool,
    ) -> Result<Decision> {
        let scores = self.grids(layout, learned)?;
        let mut weights = BTreeMap::new();
        for slot in &layout.weights {
            weights.insert(slot.clone(), self.grid(layout, slot)?);
        }
        let shape = Shape { weights, ..shape.clone() };
        let base = self.base(layout, request.removed)?;
        if let Bar::Soft(tau) = &self.bar {
            let tau = moment.value(tau);
            let mut decision = above(&scores, request, &base, &shape, SOFT_FLOOR, &|s| sigmoid(f64::from(s)) > tau)?;
            if finish {
                decision = and_the_amount(&decision, &scores, request, &base, &shape)?;
            }
            return self.entries(layout, decision, request.removed);
        }
        if matches!(request.amount, Amount::NofM { .. }) && self.granularity != Granularity::Weight {
            return Err(PruneError::Amount {
                found: "N of M".into(),
                expected: "a share: blocks, rows and columns have no pattern".into(),
            });
        }
        let decision = select(&scores, &Request { removed: &base, ..*request }, &shape)?;
        self.entries(layout, decision, request.removed)
    }

    fn exact(&self) -> bool {
        matches!(self.bar, Bar::Hard)
    }

    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)> {
        let mut out = layout.group_sums(backward)?;
        for slot in &layout.weights {
            let gradient = match (backward.gradients.get(slot), backward.weights.get(slot.as_str())) {
                (Some(g), Some(w)) => self.reduce(layout, slot, g.iter().zip(*w).map(|(g, w)| f64::from(*g) * f64::from(*w)))?,
                _ => vec![0.0; learned.params.get(slot).map_or(0, Vec::len)],
            };
            out.insert(slot.clone(), gradient);
        }
        let weight = moment.value(&self.penalty) / learned.params.len().max(1) as f64 + moment.l1;
        let mut penalty = 0.0;
        for (name, gradient) in &mut out {
            penalty += press(learned.params.get(name).map(Vec::as_slice).unwrap_or_default(), None, weight, gradient);
        }
        Ok((out, penalty))
    }
}
