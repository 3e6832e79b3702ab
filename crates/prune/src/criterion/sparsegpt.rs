//! SparseGPT: one-shot pruning that updates the weights that stay.
//!
//! Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023), eq. 5 and algorithm 1. With
//! `H = 2XXᵀ/n + λI` of a matrix's inputs and `H⁻¹ = UᵀU`, U upper: a weight's saliency is `w² / U_jj²`; columns are visited in order, and
//! what a column loses is made up for by the columns behind it, `W_:,j: −= (w_j / U_jj)·U_j,j:`. The mask of a block of columns is chosen
//! over all rows together, when the block's turn comes; N:M masks group by group.
//!
//! The authors remove one weight more in each block than the share asks for (`quirk = "reference"`); ours meets the share of the matrix.

use candle_core::{DType, Device, Tensor};
use prunectl_kernels::vector::subtract_scaled;
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::{Amount, Scope, Share};
use rayon::prelude::*;
use std::sync::Arc;

use super::{Criterion, Layerwise, blocks};
use crate::calibrate::{Gram, Inputs, VALUES_PER_TASK, host, of_expert};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::linalg::damped_inverse_upper_factor;
use crate::row::{CALIBRATION, QUIRK, WEIGHTS, criterion, needs_data, param, sequential, within};
use crate::scores::Scores;
use crate::selection::{Request, layer_amounts, scope_name, weights_to_go};
use crate::site::Sites;
use crate::surgery;

const NAME: &str = "sparsegpt";
/// Rows that are worth a task of their own.
const ROWS_PER_TASK: usize = 64;
/// How often a failed factorisation is tried again, with ten times the damping.
const RETRIES: u32 = 8;
/// The damping of the first retry where none was asked for.
const LEAST_DAMP: f64 = 0.01;

struct SparseGpt {
    damp: f64,
    block: usize,
    reference: bool,
}

/// How many weights go.
enum Pick {
    /// So many of the matrix, those already gone counted.
    Total(usize),
    /// The authors' count: this share of each block, and one more.
    Reference(Share),
    /// Of every group of so many inputs.
    Pattern { removed: usize, group: usize },
}

/// A matrix in f64 while its columns are visited.
struct Work {
    rows: usize,
    columns: usize,
    w: Vec<f64>,
    /// 1 = kept.
    keep: Vec<u8>,
    /// Saliencies when their column's mask was chosen.
    saliency: Vec<f32>,
    /// Row by row.
    upper: Arc<Vec<f64>>,
}

impl SparseGpt {
    /// The upper factor of the inverse of the damped Hessian; inputs that are always zero get a unit diagonal.
    fn factor(&self, mut h: Vec<f64>, n: usize, slot: &str, progress: &dyn Progress) -> Result<Vec<f64>> {
        if let Some((index, value)) = h.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(PruneError::WeightNotFinite { method: NAME, slot: slot.to_owned(), index, value: *value as f32 });
        }
        for x in h.iter_mut().step_by(n + 1).filter(|x| **x == 0.0) {
            *x = 1.0;
        }
        let mean = h.iter().step_by(n + 1).sum::<f64>() / n.max(1) as f64;
        let mut damp = self.damp;
        for _ in 0..=RETRIES {
            if let Some(upper) = damped_inverse_upper_factor(&h, n, damp * mean) {
                if damp > self.damp {
                    progress.note(&format!(
                        "sparsegpt: the Hessian of `{slot}` is singular with damp = {:.3}%; {:.3}% was used",
                        self.damp * 100.0,
                        damp * 100.0
                    ));
                }
                return Ok(upper);
            }
            damp = (damp * 10.0).max(LEAST_DAMP);
        }
        Err(PruneError::Invalid {
            what: "Hessian that sparsegpt factors",
            found: format!("that of `{slot}` is not positive definite even with damp = {:.3e}", damp / 10.0),
            expected: "finite inputs of moderate size: more calibration data, or a larger `damp`".into(),
        })
    }

    fn work(
        &self,
        model: &Transformer,
        slot: &str,
        stats: &Inputs<Gram>,
        removed: Option<&Tensor>,
        factored: &mut Option<(String, Arc<Vec<f64>>)>,
        progress: &dyn Progress,
    ) -> Result<Work> {
        let w = model.params().read(slot)?;
        let (rows, columns) = w.dims2()?;
        let missing = || PruneError::Invalid {
            what: "matrix that sparsegpt prunes",
            found: slot.to_owned(),
            expected: "a projection of an attention or MLP sublayer that the data reaches".into(),
        };
        let mut w = host(&w)?;
        let keep = match removed {
            Some(keep) => keep.to_device(&Device::Cpu)?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?,
            None => vec![1; w.len()],
        };
        let gram = match stats.get(slot) {
            Some(gram) if gram.columns() == columns => gram,
            None if of_expert(slot) => {
                // Nothing is known of its inputs: the Hessian of inputs that are alike in size and independent.
                progress.note(&format!("sparsegpt: no token of the data reaches `{slot}`; it is pruned by size, and nothing is updated"));
                let identity = (0..columns * columns).map(|i| f64::from(u8::from(i % (columns + 1) == 0))).collect();
                return Ok(Work { rows, columns, saliency: vec![0.0; w.len()], w, keep, upper: Arc::new(identity) });
            }
            _ => return Err(missing()),
        };
        for (j, _) in gram.diagonal().iter().enumerate().filter(|(_, x)| **x == 0.0) {
            w.iter_mut().skip(j).step_by(columns.max(1)).for_each(|w| *w = 0.0);
        }
        let upper = match factored {
            Some((source, upper)) if source == stats.source(slot) => upper.clone(),
            _ => {
                // The last one's memory is free before the next is made.
                *factored = None;
                let h = gram.times(2.0 / stats.sequences.max(1) as f64).ok_or_else(missing)?;
                Arc::new(self.factor(h, columns, slot, progress)?)
            }
        };
        *factored = Some((stats.source(slot).to_owned(), upper.clone()));
        Ok(Work { rows, columns, saliency: vec![0.0; w.len()], w, keep, upper })
    }

    fn pick(&self, slot: &str, amount: &Amount, request: &Request<'_>, work: &Work) -> Result<Pick> {
        let gone = work.keep.iter().filter(|k| **k == 0).count();
        if let Amount::NofM { removed, group } = amount {
            let (removed, group) = (*removed as usize, *group as usize);
            if group == 0 || removed > group || !work.columns.is_multiple_of(group) || !self.block.is_multiple_of(group) {
                return Err(PruneError::Amount {
                    found: format!("{removed} of {group}"),
                    expected: format!("a group that divides the {} inputs of `{slot}` and `block`, {}", work.columns, self.block),
                });
            }
            let count = Amount::Units { n: (work.rows * work.columns / group * removed) as u64, unit: prunectl_recipe::plan::Unit::Count };
            weights_to_go(slot, &count, request, work.keep.len(), gone)?;
            return Ok(Pick::Pattern { removed, group });
        }
        let more = weights_to_go(slot, amount, request, work.keep.len(), gone)?;
        Ok(match amount {
            Amount::Share { share, .. } if self.reference => Pick::Reference(*share),
            _ => Pick::Total(gone + more),
        })
    }

    /// Prunes the selected matrices of one block; their new weights and masks.
    fn layer(
        &self,
        model: &mut Transformer,
        own: &Sites,
        stats: &Inputs<Gram>,
        request: &Request<'_>,
        progress: &dyn Progress,
        out: &mut (Decision, Scores),
    ) -> Result<()> {
        // Matrices that read the same input have one Hessian; in the order of their names they need not follow one another.
        let mut slots: Vec<&String> = own.weights.iter().collect();
        slots.sort_by_key(|slot| stats.source(slot));
        let mut factored = None;
        for slot in slots {
            progress.check()?;
            let mut work = self.work(model, slot, stats, request.removed.weights.read(slot)?.as_ref(), &mut factored, progress)?;
            let pick = self.pick(slot, request.amount, request, &work)?;
            work.prune(self.block, &pick);
            let Work { rows, columns, w, keep, saliency, .. } = work;
            if let Some((index, value)) = w.iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(PruneError::WeightNotFinite { method: NAME, slot: slot.clone(), index, value: *value as f32 });
            }
            let w: Vec<f32> = w.into_par_iter().with_min_len(VALUES_PER_TASK).map(|w| w as f32).collect();
            let new = Tensor::from_vec(w, (rows, columns), &Device::Cpu)?.to_dtype(model.dtype())?.to_device(model.device())?;
            model.params_mut().set(slot.clone(), new);
            out.0.weights.insert(slot.clone(), Tensor::from_vec(keep, (rows, columns), &Device::Cpu)?);
            out.1.weights.insert(slot.clone(), Tensor::from_vec(saliency, (rows, columns), &Device::Cpu)?);
        }
        Ok(())
    }
}

impl Work {
    fn diagonal(&self, j: usize) -> f64 {
        self.upper.get(j * self.columns + j).copied().unwrap_or(1.0)
    }

    /// Writes the saliencies of columns `from..to` as they are now.
    fn rate(&mut self, from: usize, to: usize) {
        let diagonal: Vec<f64> = (from..to).map(|j| self.diagonal(j)).collect();
        let columns = self.columns.max(1);
        self.w.par_chunks(columns).zip(self.saliency.par_chunks_mut(columns)).with_min_len(ROWS_PER_TASK).for_each(|(w, s)| {
            for ((w, s), u) in w.iter().zip(s.iter_mut()).skip(from).zip(&diagonal) {
                *s = (w * w / (u * u)) as f32;
            }
        });
    }

    /// Weights of columns `from..to` that are gone.
    fn gone(&self, from: usize, to: usize) -> usize {
        let of_row = |row: &[u8]| row.get(from..to).unwrap_or_default().iter().filter(|k| **k == 0).count();
        self.keep.par_chunks(self.columns.max(1)).with_min_len(ROWS_PER_TASK).map(of_row).sum()
    }

    /// Saliency and place of the weights of columns `from..to`, of all or of those that are kept.
    fn rated(&self, from: usize, to: usize, all: bool) -> Vec<(f32, usize)> {
        let columns = self.columns.max(1);
        let rows = self.saliency.par_chunks(columns).zip(self.keep.par_chunks(columns)).enumerate().with_min_len(ROWS_PER_TASK);
        let of_row = |(row, (saliency, keep)): (usize, (&[f32], &[u8]))| {
            let places = saliency.iter().zip(keep).enumerate().skip(from).take(to - from);
            places.filter(|(_, (_, k))| all || **k != 0).map(|(j, (s, _))| (*s, row * columns + j)).collect::<Vec<_>>()
        };
        rows.flat_map_iter(of_row).collect()
    }

    fn prune(&mut self, block: usize, pick: &Pick) {
        let columns = self.columns;
        // What stays to be chosen behind a block, and what went before it.
        let (mut before, mut behind) = (0, self.gone(0, columns));
        for from in (0..columns).step_by(block.max(1)) {
            let to = (from + block).min(columns);
            match pick {
                Pick::Total(total) => {
                    let here = self.gone(from, to);
                    behind -= here;
                    let share = (*total as u128 * to as u128 / columns as u128) as usize;
                    let more = share.min(total.saturating_sub(behind)).saturating_sub(before + here);
                    before += here + self.choose(from, to, more);
                }
                Pick::Reference(share) => self.choose_reference(from, to, share.of(self.rows * (to - from))),
                Pick::Pattern { .. } => {}
            }
            let Work { w, keep, saliency, upper, .. } = self;
            let upper: &[f64] = upper;
            let rows = w.par_chunks_mut(columns).zip(keep.par_chunks_mut(columns)).zip(saliency.par_chunks_mut(columns));
            rows.for_each(|((w, keep), saliency)| {
                let mut errors = Vec::with_capacity(to - from);
                for i in from..to {
                    if let Pick::Pattern { removed, group } = pick
                        && (i - from) % group == 0
                    {
                        choose_group(i..i + group, *removed, w, keep, saliency, upper);
                    }
                    let row = upper.get(i * columns..(i + 1) * columns).unwrap_or_default();
                    let pivot = row.get(i).copied().unwrap_or(1.0);
                    let gone = keep.get(i).is_some_and(|k| *k == 0);
                    let error = if gone { w.get(i).copied().unwrap_or_default() / pivot } else { 0.0 };
                    errors.push((row, error));
                    if gone {
                        subtract_scaled(w.get_mut(i..to).unwrap_or_default(), row.get(i..to).unwrap_or_default(), error);
                        if let Some(w) = w.get_mut(i) {
                            *w = 0.0;
                        }
                    }
                }
                for (row, error) in errors.into_iter().filter(|(_, e)| *e != 0.0) {
                    subtract_scaled(w.get_mut(to..).unwrap_or_default(), row.get(to..).unwrap_or_default(), error);
                }
            });
        }
    }

    /// Masks the `more` least salient of the kept weights of columns `from..to`, over all rows; how many there were.
    fn choose(&mut self, from: usize, to: usize, more: usize) -> usize {
        self.rate(from, to);
        let mut open = self.rated(from, to, false);
        let more = more.min(open.len());
        if more < open.len() {
            // Among equals the first place: an order without ties, so that what is chosen does not depend on how.
            open.select_nth_unstable_by(more, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        for (_, i) in open.iter().take(more) {
            if let Some(k) = self.keep.get_mut(*i) {
                *k = 0;
            }
        }
        more
    }

    /// Masks the `n` least salient weights of columns `from..to` and one more, with all that tie.
    fn choose_reference(&mut self, from: usize, to: usize, n: usize) {
        self.rate(from, to);
        let rated = self.rated(from, to, true);
        let mut values: Vec<f32> = rated.iter().map(|(s, _)| *s).collect();
        let Some(last) = values.len().checked_sub(1) else { return };
        let bar = *values.select_nth_unstable_by(n.min(last), f32::total_cmp).1;
        for (_, i) in rated.iter().filter(|(s, _)| *s <= bar) {
            if let Some(k) = self.keep.get_mut(*i) {
                *k = 0;
            }
        }
    }
}

/// Masks the `removed` least salient of a group of a row's columns, those already gone first.
fn choose_group(group: std::ops::Range<usize>, removed: usize, w: &[f64], keep: &mut [u8], saliency: &mut [f32], upper: &[f64]) {
    let columns = w.len();
    let mut order = Vec::with_capacity(group.len());
    for j in group {
        let (Some(w), Some(k), Some(u)) = (w.get(j), keep.get(j), upper.get(j * columns + j)) else { continue };
        let s = (w * w / (u * u)) as f32;
        if let Some(slot) = saliency.get_mut(j) {
            *slot = s;
        }
        order.push((*k != 0, s, j));
    }
    order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    for (_, _, j) in order.into_iter().take(removed) {
        if let Some(k) = keep.get_mut(j) {
            *k = 0;
        }
    }
}

impl Criterion for SparseGpt {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        only_weights(sites)?;
        let mut out = Scores::default();
        let gated = model.blueprint().mlp.gated;
        blocks::each(NAME, &mut model.clone(), sites, data, progress, |model, layer, own, stream| {
            let stats = stream.inputs(model, layer, Inputs::new(gated, Some(layer)).only(&own.weights))?;
            let mut factored = None;
            for slot in &own.weights {
                let mut work = self.work(model, slot, &stats, None, &mut factored, progress)?;
                work.rate(0, work.columns);
                out.weights.insert(slot.clone(), Tensor::from_vec(work.saliency, (work.rows, work.columns), &Device::Cpu)?);
            }
            Ok(())
        })?;
        out.checked(NAME)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }

    fn updates_weights(&self) -> bool {
        true
    }

    fn holds_products(&self) -> bool {
        true
    }
}

fn only_weights(sites: &Sites) -> Result<()> {
    match sites.kinds().into_iter().find(|k| *k != SiteKind::Weights) {
        Some(kind) => Err(PruneError::Site { method: NAME, kind, hint: "it prunes single weights: `m.layers[*].linears.weights`" }),
        None => Ok(()),
    }
}

impl Layerwise for SparseGpt {
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        only_weights(request.sites)?;
        let refused = |what, found: &str, expected: &str| Err(PruneError::Invalid { what, found: found.into(), expected: expected.into() });
        if request.scope != Scope::Matrix {
            let found = scope_name(request.scope);
            return Err(PruneError::Scope { found, kind: SiteKind::Weights, expected: "matrix: each block of columns is ranked alone" });
        }
        if request.align.is_some_and(|a| a > 1) {
            return refused("`align` of weights", "a multiple", "no `align`: single weights have no count per layer");
        }
        if request.step.is_some() {
            return refused("`rescore` of sparsegpt", "a step", "no `rescore`: it measures each block again before the block is pruned");
        }
        let amounts = layer_amounts(request.amount, request.sites)?;
        let gated = model.blueprint().mlp.gated;
        let mut out = (Decision::beside(model)?, Scores::beside(model)?);
        blocks::each(NAME, model, request.sites, data, progress, |model, layer, own, stream| {
            let stats = stream.inputs(model, layer, Inputs::new(gated, Some(layer)).only(&own.weights))?;
            let amount = amounts.as_ref().and_then(|a| a.get(&layer)).unwrap_or(request.amount);
            let mut here = (Decision::default(), Scores::default());
            self.layer(model, own, &stats, &Request { amount, removed, ..*request }, progress, &mut here)?;
            let chosen = here.0.stored_in(&out.0)?;
            out.1.add(here.1)?;
            surgery::mask(model, removed, &chosen)?;
            out.0.add(chosen);
            Ok(())
        })?;
        Ok((out.0, out.1.checked(NAME)?))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(SparseGpt {
        damp: args.float("damp")?,
        block: args.count("block")? as usize,
        reference: args.word("quirk")? == "reference",
    }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(sequential(criterion(
        "sparsegpt",
        "Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023), eq. 5 and algorithm 1",
        &[
            CALIBRATION,
            within(param("damp", Ty::Percent, "1%", "Share of the mean diagonal of H added to it."), 0.0, 100.0),
            within(param("block", Ty::Count, "128", "Columns whose mask is chosen together."), 1.0, 65536.0),
            QUIRK,
        ],
        WEIGHTS,
        "Removes weights with the least `w² / [H⁻¹]_jj²` (upper Cholesky factor of the inverse of `H = 2XXᵀ/n + λI`) and updates the remaining ones column by column.\n\n\
         Mind: the mask of a block of columns is chosen over all rows together; dead inputs get a unit diagonal; a failed factorisation is retried with more damping and says so. \
         `score`, and `inputs = dense`, give saliencies of the weights as they are: nothing is updated then. \
         The authors' code removes one weight more in each block (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using sparsegpt(on = d.train.sample(64, seed = 0), damp = 1%, block = 128)\n```",
    ))),
    build,
};

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::criterion::by_hand::SLOT;

    /// One row, two inputs: H = [[4, 2], [2, 2]] has U = √½·[[1, −1], [0, 1]], so both weights count w²/½, and what the first
    /// loses is given to the second: w₂ − (w₁/U₁₁)·U₁₂ = w₂ + w₁.
    #[test]
    fn by_hand() {
        let half = 0.5f64.sqrt();
        let mut work = Work {
            rows: 1,
            columns: 2,
            w: vec![1.0, 3.0],
            keep: vec![1; 2],
            saliency: vec![0.0; 2],
            upper: Arc::new(vec![half, -half, 0.0, half]),
        };
        work.prune(2, &Pick::Total(1));
        assert_eq!(work.keep, [0, 1]);
        assert_eq!(work.saliency, [2.0, 18.0]);
        assert!(work.w[0] == 0.0 && (work.w[1] - 4.0).abs() < 1e-12);
    }

    /// What is gone already counts, goes first, and the share is met exactly whatever the block.
    #[test]
    fn meets_the_share_with_weights_that_are_gone() {
        for block in [1, 3, 4, 128] {
            let identity: Arc<Vec<f64>> = Arc::new((0..49).map(|i| f64::from(u8::from(i % 8 == 0))).collect());
            let w: Vec<f64> = (0..35).map(|i| f64::from((i * 17) % 35) + 1.0).collect();
            let mut keep = vec![1u8; 35];
            for row in keep.chunks_mut(7) {
                row[5..].fill(0);
            }
            let mut work = Work { rows: 5, columns: 7, w, keep, saliency: vec![0.0; 35], upper: identity };
            work.prune(block, &Pick::Total(17));
            assert_eq!(work.keep.iter().filter(|k| **k == 0).count(), 17, "{block}");
            assert!(work.keep.chunks(7).all(|r| r[5..] == [0, 0]));
            assert!(work.w.iter().zip(&work.keep).all(|(w, k)| (*w == 0.0) == (*k == 0)));
        }
    }

    #[derive(Default)]
    struct Notes(std::sync::Mutex<RefCell<Vec<String>>>);

    impl Progress for Notes {
        fn note(&self, message: &str) {
            self.0.lock().unwrap().borrow_mut().push(message.to_owned());
        }
    }

    #[test]
    fn a_singular_hessian_is_damped_and_said() {
        let notes = Notes::default();
        let method = SparseGpt { damp: 0.0, block: 8, reference: false };
        let upper = method.factor(vec![1.0, 1.0, 1.0, 1.0], 2, SLOT, &notes).unwrap();
        assert!(upper.iter().all(|u| u.is_finite()));
        let said = notes.0.lock().unwrap().borrow().clone();
        assert!(said.len() == 1 && said[0].contains(SLOT), "{said:?}");
        assert!(method.factor(vec![1.0, f64::NAN, 0.0, 1.0], 2, SLOT, &notes).unwrap_err().to_string().contains(SLOT));
    }
}
