//! Writers fitted anew after a structured prune: least squares, or their bias alone.
//!
//! He et al., Channel Pruning for Accelerating Very Deep Neural Networks (2017), eq. 1, sec. 3.2 (the asymmetric target) and 3.3 (residual
//! blocks); Luo et al., ThiNet (2017), sec. 3.2.3. Block by block, with h what the writer (`o` for heads, `down` for neurons) reads in the
//! pruned model and e by how much the residual stream behind it lags the dense model's:
//! `ΔW = argmin Σ_tokens ‖e − ΔW h‖² + λ‖ΔW‖² = (Σ e hᵀ)(Σ h hᵀ + λI)⁻¹`, λ a share of the mean diagonal of `Σ h hᵀ`.
//! The target is the dense *stream*, so a block makes up for what its predecessors left, too. A writer that has a bias gets it fitted along.
//! With `bias` alone, `Δb = mean e`; a writer without a bias gets one (An et al., FLAP (2024), eq. 8, on the pruned model's inputs).
//!
//! Sums are in f64; memory grows with the calibration set only by the residual stream before the block at hand.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Context, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use serde::{Deserialize, Serialize};

use super::sublayer::{Part, Seen};
use crate::calibrate::real_tokens;
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::linalg::inverse_upper_factor;
use crate::units::{count, group};

/// λ as a share of the mean diagonal of the Gram matrix.
const DAMP: f64 = 1e-3;
/// How often a failed factorisation is tried again, with ten times the damping.
const RETRIES: u32 = 6;

/// What is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The writer's bias.
    Bias,
    /// The writer's weights, and its bias where it has one.
    LeastSquares,
}

impl Fit {
    /// The word of `reconstruct = …`; None for `none`.
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "bias" => Some(Self::Bias),
            "least_squares" => Some(Self::LeastSquares),
            _ => None,
        }
    }
}

/// What became of one writer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// Its slot.
    pub slot: String,
    /// Σ e² over the tokens before the fit, as a share of the dense stream's Σ x².
    pub before: f64,
    /// After it, on the same tokens.
    pub after: f64,
    /// λ as a share of the mean diagonal; larger than usual where the Gram matrix was singular.
    pub damp: f64,
}

/// The two residual streams before one block.
struct Streams {
    batches: Vec<(Batch, Option<Tensor>)>,
    dense: Vec<(Tensor, Context)>,
    pruned: Vec<(Tensor, Context)>,
}

/// Σ over the tokens, f64.
struct Sums {
    /// Σ z zᵀ, z = h of the columns that are left, and a 1 behind them where a bias is fitted.
    gram: Tensor,
    /// Σ z eᵀ.
    cross: Tensor,
    /// Σ e², and Σ x² of the dense stream.
    lag: f64,
    scale: f64,
}

/// Fits the writers of the sublayers that `decision` took units from. `dense` is the model before that prune, `model` the masked one.
///
/// # Errors
/// Data without a batch; neurons of experts; single weights masked in a writer; activations that overflow.
pub fn fit(
    kind: Fit,
    dense: &Transformer,
    model: &mut Transformer,
    removed: &Removed,
    decision: &Decision,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Vec<Fitted>> {
    let parts = touched(model, removed, decision)?;
    if kind == Fit::Bias {
        let any = |part: Part| parts.iter().any(|(_, p)| *p == part);
        *model = model.with_output_biases(any(Part::Attention), any(Part::Mlp))?;
    }
    let mut streams = Streams::begin(dense, model, data, progress)?;
    let mut out = Vec::with_capacity(parts.len());
    for layer in 0..model.n_layers() {
        for part in [Part::Attention, Part::Mlp] {
            progress.check()?;
            if parts.contains(&(layer, part)) {
                out.push(writer(kind, dense, model, removed, (layer, part), &streams, progress)?);
            }
        }
        if parts.range((layer + 1, Part::Attention)..).next().is_none() {
            break;
        }
        streams.pass(dense, model, layer)?;
        progress.advance(layer as u64 + 1, model.n_layers() as u64, "reconstruct");
    }
    Ok(out)
}

/// The sublayers that lost a unit by the decision and can be fitted.
fn touched(model: &Transformer, removed: &Removed, decision: &Decision) -> Result<BTreeSet<(usize, Part)>> {
    let mut out = BTreeSet::new();
    for (key, kept) in &decision.sites {
        let Some(layer) = key.layer else { continue };
        let part = match key.kind {
            SiteKind::Heads | SiteKind::KvGroups => Part::Attention,
            SiteKind::Neurons => Part::Mlp,
            _ => continue,
        };
        if kept.len() == count(model, *key)? {
            continue;
        }
        if part == Part::Mlp && model.layer_dims(layer)?.experts > 0 {
            let hint = "`reconstruct` fits attention and dense MLPs; recover experts with `train`";
            return Err(PruneError::Site { method: "reconstruct", kind: SiteKind::Neurons, hint });
        }
        let slot = format!("{}.weight", part.writer(layer));
        if removed.weights.contains_key(&slot) {
            return Err(PruneError::Invalid {
                what: "writer that `reconstruct` fits",
                found: format!("single weights of `{slot}` are masked"),
                expected: "whole units only: prune weights afterwards, or recover with `train`".into(),
            });
        }
        out.insert((layer, part));
    }
    if out.is_empty() && decision.sites.keys().all(|k| !matches!(k.kind, SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons)) {
        let kind = decision.sites.keys().next().map_or(SiteKind::Weights, |k| k.kind);
        return Err(PruneError::Site { method: "reconstruct", kind, hint: "it fits what heads, KV groups and neurons write through" });
    }
    Ok(out)
}

impl Streams {
    fn begin(dense: &Transformer, model: &Transformer, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Self> {
        let mut out = Self { batches: Vec::new(), dense: Vec::new(), pruned: Vec::new() };
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            out.dense.push(detached(dense.embed(&batch)?));
            out.pruned.push(detached(model.embed(&batch)?));
            let real = real_tokens(&batch)?;
            out.batches.push((batch, real));
        }
        match out.batches.is_empty() {
            true => Err(PruneError::NoData { method: "reconstruct", batches: 0 }),
            false => Ok(out),
        }
    }

    /// Both streams through a block.
    fn pass(&mut self, dense: &Transformer, model: &Transformer, layer: usize) -> Result<()> {
        for (network, states) in [(dense, &mut self.dense), (model, &mut self.pruned)] {
            for (x, context) in states {
                *x = network.block(layer, x, context, None, &mut ())?.detach();
            }
        }
        Ok(())
    }
}

fn detached((x, context): (Tensor, Context)) -> (Tensor, Context) {
    (x.detach(), context)
}

/// Input columns of a writer that hold a unit which is still there.
fn live(model: &Transformer, removed: &Removed, layer: usize, part: Part, width: usize) -> Result<Vec<u32>> {
    let slot = format!("{}.weight", part.writer(layer));
    let mut gone = BTreeSet::new();
    for (key, units) in removed.units.units.iter().filter(|(k, _)| k.layer == Some(layer)) {
        if matches!(key.kind, SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons) {
            for unit in units {
                let own = group(model, *key, unit)?.into_iter().filter(|s| s.slot == slot && s.dim == 1);
                gone.extend(own.flat_map(|s| s.start..s.start + s.len));
            }
        }
    }
    Ok((0..width).filter(|c| !gone.contains(c)).map(|c| c as u32).collect())
}

fn add(sum: Option<Tensor>, more: Tensor) -> candle_core::Result<Tensor> {
    match sum {
        Some(sum) => sum + more,
        None => Ok(more),
    }
}

fn host(t: &Tensor) -> candle_core::Result<Tensor> {
    t.to_device(&Device::Cpu)
}

fn squares(t: &Tensor) -> candle_core::Result<f64> {
    t.sqr()?.sum_all()?.to_scalar::<f64>()
}

impl Streams {
    fn sums(
        &self,
        dense: &Transformer,
        model: &Transformer,
        (layer, part): (usize, Part),
        columns: &[u32],
        one: bool,
    ) -> Result<Option<Sums>> {
        let layout = model.blueprint().layout;
        let (mut gram, mut cross, mut lag, mut scale) = (None, None, 0.0, 0.0);
        for ((_, real), (theirs, ours)) in self.batches.iter().zip(self.dense.iter().zip(&self.pruned)) {
            let (mut teacher, mut student) = (Seen::default(), Seen::default());
            dense.block(layer, &theirs.0, &theirs.1, None, &mut teacher)?;
            model.block(layer, &ours.0, &ours.1, None, &mut student)?;
            let Some(h) = student.writer_input(part)? else { continue };
            let (Some(wanted), Some(there)) = (teacher.stream(part, layout)?, student.stream(part, layout)?) else { continue };
            // [tokens, …] in f64, padding zeroed.
            let flat = |x: &Tensor| -> candle_core::Result<Tensor> {
                let x = x.detach().to_dtype(DType::F64)?;
                match real {
                    Some(real) => x.broadcast_mul(real)?.flatten_to(1),
                    None => x.flatten_to(1),
                }
            };
            let wanted = flat(&wanted)?;
            let lost = host(&(&wanted - flat(&there)?)?)?;
            let (b, s) = ours.1.size();
            let real = match real {
                Some(real) => host(&real.reshape((b * s, 1))?)?,
                None => Tensor::ones((b * s, 1), DType::F64, &Device::Cpu)?,
            };
            let mut z = Vec::with_capacity(2);
            if !columns.is_empty() {
                let index = Tensor::from_slice(columns, columns.len(), &Device::Cpu)?;
                z.push(host(&h)?.index_select(&index, 1)?.broadcast_mul(&real)?);
            }
            if one {
                z.push(real);
            }
            let z = Tensor::cat(&z, 1)?;
            let zt = z.t()?.contiguous()?;
            gram = Some(add(gram, zt.matmul(&z)?)?);
            cross = Some(add(cross, zt.matmul(&lost)?)?);
            lag += squares(&lost)?;
            scale += squares(&wanted)?;
        }
        Ok(gram.zip(cross).map(|(gram, cross)| Sums { gram, cross, lag, scale }))
    }
}

/// Fits one writer; the model holds the new one afterwards.
fn writer(
    kind: Fit,
    dense: &Transformer,
    model: &mut Transformer,
    removed: &Removed,
    (layer, part): (usize, Part),
    streams: &Streams,
    progress: &dyn Progress,
) -> Result<Fitted> {
    let stem = part.writer(layer);
    let (weight, bias) = (format!("{stem}.weight"), format!("{stem}.bias"));
    let one = model.params().get(&bias).is_some();
    let width = model.params().require(&weight)?.dim(1)?;
    let columns = match kind {
        Fit::Bias => Vec::new(),
        Fit::LeastSquares => live(model, removed, layer, part, width)?,
    };
    let nothing = Fitted { slot: weight.clone(), before: 0.0, after: 0.0, damp: 0.0 };
    if columns.is_empty() && !one {
        progress.note(&format!("reconstruct: nothing is left of `{weight}` that could be fitted"));
        return Ok(nothing);
    }
    let Some(sums) = streams.sums(dense, model, (layer, part), &columns, one)? else {
        progress.note(&format!("reconstruct: no token reaches `{weight}`"));
        return Ok(nothing);
    };
    let (solution, damp) = sums.solve(&weight, columns.len(), progress)?;
    let share = |x: f64| if sums.scale > 0.0 { x.max(0.0) / sums.scale } else { 0.0 };
    let after = sums.left(&solution)?;
    // [live, hidden] goes to the columns of [hidden, width], the last row to the bias.
    if !columns.is_empty() {
        let old = model.params().require(&weight)?;
        let index = Tensor::from_slice(&columns, columns.len(), &Device::Cpu)?;
        let change = solution.narrow(0, 0, columns.len())?.t()?.contiguous()?;
        let new = host(old)?.to_dtype(DType::F64)?.contiguous()?.index_add(&index, &change, 1)?;
        let new = new.to_dtype(old.dtype())?.to_device(old.device())?;
        model.params_mut().set(weight.clone(), new);
    }
    if one {
        let old = model.params().require(&bias)?;
        let change = solution.get(columns.len())?;
        let new = (host(old)?.to_dtype(DType::F64)? + change)?.to_dtype(old.dtype())?.to_device(old.device())?;
        model.params_mut().set(bias, new);
    }
    Ok(Fitted { slot: weight, before: share(sums.lag), after: share(after), damp })
}

impl Sums {
    /// `[columns (+ 1), hidden]`, and the damping that it took. The bias is not damped.
    fn solve(&self, slot: &str, columns: usize, progress: &dyn Progress) -> Result<(Tensor, f64)> {
        let n = self.gram.dim(0)?;
        let gram = self.gram.flatten_all()?.to_vec1::<f64>()?;
        if let Some((index, value)) = gram.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(PruneError::WeightNotFinite { method: "reconstruct", slot: slot.to_owned(), index, value: *value as f32 });
        }
        let mean = gram.iter().step_by(n + 1).take(columns).sum::<f64>() / columns.max(1) as f64;
        if columns > 0 && mean == 0.0 && n == columns {
            return Ok((self.cross.zeros_like()?, 0.0));
        }
        let mut damp = DAMP;
        for _ in 0..=RETRIES {
            let mut damped = gram.clone();
            for x in damped.iter_mut().step_by(n + 1).take(columns) {
                *x += damp * if mean > 0.0 { mean } else { 1.0 };
            }
            if let Some(upper) = inverse_upper_factor(&damped, n) {
                if damp > DAMP {
                    progress
                        .note(&format!("reconstruct: the inputs of `{slot}` are nearly dependent; {:.3}% damping was used", damp * 100.0));
                }
                // A⁻¹ = UᵀU.
                let upper = Tensor::from_vec(upper, (n, n), &Device::Cpu)?;
                let solution = upper.t()?.contiguous()?.matmul(&upper.matmul(&self.cross)?)?;
                return Ok((solution, damp));
            }
            damp *= 10.0;
        }
        Err(PruneError::Invalid {
            what: "Gram matrix that `reconstruct` factors",
            found: format!("that of `{slot}` is not positive definite even with {:.1e} damping", damp / 10.0),
            expected: "finite inputs of moderate size: more calibration data".into(),
        })
    }

    /// Σ (e − Θᵀz)² of a solution.
    fn left(&self, solution: &Tensor) -> Result<f64> {
        let crossed = solution.mul(&self.cross)?.sum_all()?.to_scalar::<f64>()?;
        let own = solution.mul(&self.gram.matmul(solution)?)?.sum_all()?.to_scalar::<f64>()?;
        Ok(self.lag - 2.0 * crossed + own)
    }
}
