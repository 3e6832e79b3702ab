//! Sums over the data of what a gate's gradient ∂L/∂ξ says, from one backward pass a batch: every example has its own gates, so its
//! gradient comes out alone. No weight is a variable. Shared by loss_delta, fisher and group_fisher.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use prunectl_kernels::threads::side_by_side;
use prunectl_model::{Batch, LossOut};
use prunectl_recipe::catalogue::SiteKind;
use rayon::prelude::*;

use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::network::{Network, Total};
use crate::scores::Scores;
use crate::site::{Key, Sites};

/// How gradients become a unit's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// |∂L(x)/∂ξ|, the mean over examples: Michel et al.
    Example,
    /// |∂L_b/∂ξ_t| of each token t, L_b the mean of the batch: the authors' code.
    Token,
    /// |∂L_b/∂ξ|: transformers' bertology.
    Batch,
    /// (∂L(x)/∂ξ)², the mean over examples: Fisher.
    Square,
    /// The sum of each example's part of ∂L_b/∂ξ, squared: the Group Fisher authors' code.
    SquareOfBatchMean,
}

impl Of {
    /// Whether an example's share does not depend on the other examples of its batch.
    fn example_by_example(self) -> bool {
        matches!(self, Self::Example | Self::Square)
    }
}

/// Tokens of the pieces of a batch that pass side by side.
const TOKENS_PER_PIECE: usize = 1024;

/// One score a unit; `method` names who asks.
pub(super) fn score(
    method: &'static str,
    of: Of,
    network: &dyn Network,
    sites: &Sites,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Scores> {
    if let Some(kind) = sites.kinds().into_iter().find(|k| matches!(k, SiteKind::Weights | SiteKind::Hidden)) {
        return Err(PruneError::Site { method, kind, hint: "a gate can't switch these off; use `taylor` or `magnitude`" });
    }
    let by_token = |k: &SiteKind| matches!(k, SiteKind::Heads | SiteKind::KvGroups);
    if let Some(kind) = sites.kinds().into_iter().find(|k| of == Of::Token && !by_token(k)) {
        return Err(PruneError::Site { method, kind, hint: "`quirk = \"reference\"` is defined for heads and KV groups" });
    }
    let mut sums = Sums { sites: BTreeMap::new(), examples: 0, tokens: 0 };
    for key in sites.units.keys() {
        sums.sites.insert(*key, vec![0.0; network.count(*key)?]);
    }
    // A gate on an expert is shared by its batch: examples run one by one.
    let one_by_one = sites.kinds().contains(&SiteKind::Experts);
    let mut done = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        if one_by_one && of.example_by_example() {
            for row in 0..batch.size()?.0 {
                sums.add(of, network, &batch.rows(&[row as u32])?)?;
            }
        } else {
            sums.add(of, network, &batch)?;
        }
        done += 1;
        progress.advance(done, data.len_hint().map_or(done, |n| n as u64), method);
    }
    if sums.examples == 0 {
        return Err(PruneError::NoData { method, batches: done as usize });
    }
    Ok(sums.scores(of, network))
}

struct Sums {
    sites: BTreeMap<Key, Vec<f64>>,
    /// Examples with a scored token.
    examples: usize,
    /// Real tokens.
    tokens: usize,
}

impl Sums {
    /// Adds a batch; where its examples count one by one, pieces of it pass side by side.
    fn add(&mut self, of: Of, network: &dyn Network, batch: &Batch) -> Result<()> {
        let (examples, length) = batch.size()?;
        let rows = (TOKENS_PER_PIECE / length.max(1)).max(1);
        if !of.example_by_example() || rows >= examples || !batch.input_ids.device().is_cpu() {
            let sums = self.of_batch(of, network, batch)?;
            self.merge(sums);
            return Ok(());
        }
        let all: Vec<u32> = (0..examples as u32).collect();
        for sums in side_by_side(all.par_chunks(rows), |rows| self.of_batch(of, network, &batch.rows(rows)?))? {
            self.merge(sums);
        }
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.examples += other.examples;
        self.tokens += other.tokens;
        for (key, more) in other.sites {
            if let Some(sums) = self.sites.get_mut(&key) {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
    }

    /// The sums of one batch alone.
    fn of_batch(&self, of: Of, network: &dyn Network, batch: &Batch) -> Result<Self> {
        let mut own = Self { sites: self.sites.iter().map(|(k, s)| (*k, vec![0.0; s.len()])).collect(), examples: 0, tokens: 0 };
        // The codes behind the quirks differentiate the mean of the batch, the paper the mean of each example.
        let total: Total = if of.example_by_example() { |l| Ok(l.per_example_mean()?.sum_all()?) } else { LossOut::mean };
        let keys: BTreeSet<Key> = self.sites.keys().copied().collect();
        let found = network.gate_gradients(&keys, batch, of == Of::Token, total)?;
        let live = found.loss.per_example_count.iter().filter(|n| **n > 0).count();
        if live == 0 {
            return Ok(own);
        }
        own.examples += live;
        own.tokens += match &batch.keep {
            Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?.iter().filter(|k| **k != 0).count(),
            None => batch.input_ids.elem_count(),
        };
        for (key, sums) in &mut own.sites {
            // A unit that the loss does not depend on has no gradient: its share is 0.
            let Some(g) = found.sites.get(key) else { continue };
            let shares = shares(of, g, sums.len(), network.coupled(*key)?)?;
            for (sum, share) in sums.iter_mut().zip(shares) {
                *sum += share;
            }
        }
        Ok(own)
    }

    fn scores(self, of: Of, network: &dyn Network) -> Scores {
        let mut out = Scores::default();
        for (key, sums) in self.sites {
            let n = match of {
                Of::Example | Of::Square => self.examples,
                Of::SquareOfBatchMean => 1,
                // The authors divide the last layer of a classifier by examples: only the first token has a gradient there.
                Of::Token if !network.every_token(key) => self.examples,
                Of::Token | Of::Batch => self.tokens,
            };
            out.sites.insert(key, sums.into_iter().map(|s| (s / n.max(1) as f64) as f32).collect());
        }
        out
    }
}

/// What each unit gains: rows are examples (or tokens, or everything at once); `group` neighbours sum before the absolute value or the square.
fn shares(of: Of, g: &Tensor, width: usize, group: usize) -> Result<Vec<f64>> {
    let g = g.to_dtype(DType::F64)?.reshape(((), width * group))?;
    let g = if of == Of::Batch { g.sum_keepdim(0)? } else { g };
    let mut out = vec![0.0; width];
    for row in g.to_vec2::<f64>()? {
        for (sum, unit) in out.iter_mut().zip(row.chunks(group)) {
            let g = unit.iter().sum::<f64>();
            *sum += if matches!(of, Of::Square | Of::SquareOfBatchMean) { g * g } else { g.abs() };
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Gradients (1, −2) and (−3, 2) of two examples: means of absolute values (over two) 4 and 4 before dividing, absolute values of the
    /// sums 2 and 0, squares 10 and 8; of both as one group the sums −1 and −1 come first.
    #[test]
    fn by_hand() {
        let g = Tensor::new(&[[1f64, -2.0], [-3.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(shares(Of::Example, &g, 2, 1).unwrap(), [4.0, 4.0]);
        assert_eq!(shares(Of::Batch, &g, 2, 1).unwrap(), [2.0, 0.0]);
        assert_eq!(shares(Of::Square, &g, 2, 1).unwrap(), [10.0, 8.0]);
        assert_eq!(shares(Of::Example, &g, 1, 2).unwrap(), [2.0]);
        assert_eq!(shares(Of::Square, &g, 1, 2).unwrap(), [2.0]);
    }
}
