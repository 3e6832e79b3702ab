//! SliceGPT: the residual stream turned onto its principal directions, the smallest of them cut.
//!
//! Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns (2024), sec. 3: an RMS norm without weights
//! commutes with an orthogonal Q (eq. 2), so tables and writers may write `xQ` and readers read it (theorem 1); Q are the eigenvectors of
//! `C = Σ x̂x̂ᵀ`, x̂ what the norms give (eq. 5-7), and the columns of the smallest eigenvalues go (sec. 3.4). Norms go on dividing by the
//! width that the stream had.
//!
//! Where we deviate: the paper turns each block by a Q of its own and multiplies the shortcut by `Q_{l-1}ᵀQ_l`, for which no stock class has
//! a place. Here one Q serves the whole model, C summed over all its norms, and what is saved loads as it is; it cuts less well.
//!
//! Norms first lose their weights to the matrices that read them. A LayerNorm takes the mean of the channels: what is written has mean zero
//! (sec. 3.2), and n channels hold n − 1 directions, so that the class's own mean stays zero after the turn. Then the direction of ones is
//! free: a norm's bias of ones meets the weights there, which hold what its old bias gave, so readers need no new bias. The old width enters
//! as a factor: with `s = √(n/D)`, the stream is written s times smaller and norms have the weight 1/s, which is exact, ε included.

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Gates, Head, Layout, ModelError, NormKind, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};

use super::{Criterion, Layerwise};
use crate::calibrate::{Gram, Rows, Statistic, real_tokens};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::linalg::symmetric_eigen;
use crate::row::{CALIBRATION, criterion, needs_data, turns};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::{Key, Sites};
use crate::surgery;

const NAME: &str = "slice";
const KEY: Key = Key { kind: SiteKind::Hidden, layer: None };

struct SliceGpt;

/// A norm and the matrices that read what it gives.
struct Read {
    norm: String,
    readers: Vec<String>,
}

/// Every norm of the stream, by what reads it.
fn reads(model: &Transformer) -> Result<Vec<Read>> {
    let one = model.blueprint().layout == Layout::ParallelOneNorm;
    let mut out = Vec::new();
    for layer in 0..model.n_layers() {
        let p = format!("layers.{layer}");
        let (mut attention, mut mlp) = (Vec::new(), Vec::new());
        for slot in model.linears(layer)? {
            if [".q.weight", ".k.weight", ".v.weight"].iter().any(|name| slot.ends_with(name)) {
                attention.push(slot);
            } else if [".gate.weight", ".up.weight"].iter().any(|name| slot.ends_with(name)) {
                mlp.push(slot);
            }
        }
        mlp.extend(Some(format!("{p}.mlp.router.weight")).filter(|slot| model.params().has(slot)));
        if one {
            attention.append(&mut mlp);
        }
        out.push(Read { norm: format!("{p}.norm1"), readers: attention });
        out.push(Read { norm: format!("{p}.norm2"), readers: mlp });
    }
    let head = if matches!(model.blueprint().head, Head::Tokens { .. }) { "head.weight" } else { "classifier.weight" };
    out.push(Read { norm: "final_norm".to_owned(), readers: vec![head.to_owned()] });
    out.retain(|read| model.params().has(&format!("{}.weight", read.norm)));
    Ok(out)
}

/// Matrices and biases that add to the stream.
fn writers(model: &Transformer) -> Vec<String> {
    let writes = |slot: &&str| {
        let stem = slot.rsplit_once('.').map_or(*slot, |(stem, _)| stem);
        stem.starts_with("layers.") && (stem.ends_with(".attention.o") || stem.ends_with(".down"))
    };
    model.params().slots().filter(writes).map(str::to_owned).collect()
}

fn tables(model: &Transformer) -> Vec<String> {
    model.params().slots().filter(|slot| slot.starts_with("embeddings.")).map(str::to_owned).collect()
}

fn wide(model: &Transformer, slot: &str) -> Result<Tensor> {
    Ok(model.params().read(slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)
}

/// Replaces a parameter; that of a streamed model goes to the disk.
fn put(model: &mut Transformer, slot: &str, t: &Tensor) -> Result<()> {
    let t = t.to_dtype(model.dtype())?.to_device(model.device())?;
    model.params_mut().set(slot, t);
    Ok(model.params_mut().tensors_mut().put_away(slot)?)
}

/// What keeps a network from being turned.
fn supported(model: &Transformer) -> Result<()> {
    let (b, e) = (model.blueprint(), &model.blueprint().embeddings);
    let found = match (&b.layout, &b.head) {
        (Layout::Post | Layout::Sandwich, _) => "norms behind the sublayers, whose weights lie along the channels",
        _ if e.norm_eps.is_some() => "a norm over the embeddings that the stream begins with",
        _ if e.project.is_some() => "a projection between embeddings and stream",
        _ if !b.final_norm => "no norm before the head",
        (_, Head::Encode { .. }) => "an encoder, which gives the stream itself",
        (_, Head::Sequence { dense: Some(_), .. } | Head::Tokens { transform: Some(_), .. } | Head::Tokens { project: true, .. }) => {
            "a head with a layer of its own on the stream"
        }
        _ if b.norm.kind == NormKind::RmsOffsetOne => "norms that add one to their weights",
        _ if model.int8().is_some() => "matrices of int8",
        _ => return Ok(()),
    };
    Err(PruneError::Invalid {
        what: "network that slice turns",
        found: found.into(),
        expected: "norms before each sublayer and before the head; score `hidden` with `activation_norm` or `magnitude` here".into(),
    })
}

/// Norms without weights of their own: 1, and in a LayerNorm a bias of 1 that meets what its bias gave each reader.
fn fold(model: &mut Transformer, reads: &[Read]) -> Result<()> {
    for read in reads {
        let name = format!("{}.weight", read.norm);
        let weight = wide(model, &name)?;
        let bias_name = format!("{}.bias", read.norm);
        let bias = model.params().has(&bias_name).then(|| wide(model, &bias_name)).transpose()?;
        let width = weight.dim(0)?;
        for slot in &read.readers {
            let w = wide(model, slot)?;
            let mut scaled = w.broadcast_mul(&weight)?;
            if let Some(bias) = &bias {
                // What the norm gives has mean zero, so a row's own mean does nothing and its place is free.
                let given = w.matmul(&bias.unsqueeze(1)?)?; // [out, 1]
                let mean = scaled.sum_keepdim(1)?;
                scaled = scaled.broadcast_add(&((given - mean)? / width as f64)?)?;
            }
            put(model, slot, &scaled)?;
        }
        put(model, &name, &weight.ones_like()?)?;
        if let Some(bias) = bias {
            put(model, &bias_name, &bias.ones_like()?)?;
        }
    }
    Ok(())
}

/// `Σ x̂x̂ᵀ` of what the norms give.
struct Signals {
    products: Gram,
    keep: Option<Tensor>,
    /// The bias that LayerNorms have after folding.
    shift: f64,
    one_norm: bool,
    layers: usize,
    tokens: usize,
    /// The first value that is no number.
    bad: Option<(Key, usize, f32)>,
}

impl Signals {
    fn add(&mut self, layer: usize, point: Point, x: &Tensor) -> candle_core::Result<()> {
        let mut x = (x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)? - self.shift)?; // [b, s, hidden]
        if let Some(keep) = &self.keep {
            x = x.broadcast_mul(keep)?;
        }
        let x = x.flatten_to(1)?;
        if self.bad.is_none() {
            let width = x.dim(1)?.max(1);
            let values = x.flatten_all()?.to_vec1::<f64>()?;
            let key = match point {
                Point::AttentionInput => Key::of(SiteKind::Attention, layer),
                _ => Key::of(SiteKind::Mlp, layer.min(self.layers.saturating_sub(1))),
            };
            self.bad = values.iter().position(|v| !v.is_finite()).map(|i| (key, i % width, values.get(i).map_or(f32::NAN, |v| *v as f32)));
        }
        self.products.add(&x, Rows { real: None, sequence: None })
    }
}

impl Tap for Signals {
    fn wants(&self, _: usize, point: Point) -> bool {
        matches!(point, Point::AttentionInput | Point::FinalNorm) || point == Point::MlpInput && !self.one_norm
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        Ok(self.add(layer, point, x)?)
    }
}

/// Eigenvalues as shares of their sum, descending, and the directions `[directions, hidden]`: `hidden` of them, or one fewer where what norms
/// give has mean zero.
fn directions(model: &Transformer, data: &mut dyn Batches, progress: &dyn Progress) -> Result<(Vec<f32>, Vec<f64>)> {
    let layer_norm = model.blueprint().norm.kind == NormKind::Layer;
    let mut signals = Signals {
        products: Gram::new(0),
        keep: None,
        shift: if layer_norm { 1.0 } else { 0.0 },
        one_norm: model.blueprint().layout == Layout::ParallelOneNorm,
        layers: model.n_layers(),
        tokens: 0,
        bad: None,
    };
    let mut done = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        signals.keep = real_tokens(&batch)?;
        signals.tokens += batch.input_ids.elem_count();
        let (x, context) = model.hidden(&batch, &Gates::default(), &mut signals)?;
        model.last_norm(&x, &context, &mut signals)?;
        done += 1;
        progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
    }
    if let Some((key, unit, value)) = signals.bad {
        return Err(PruneError::NotFinite { method: NAME, key, unit, value });
    }
    let n = model.blueprint().hidden;
    let none = || PruneError::NoData { method: NAME, batches: done as usize };
    let mut products = signals.products.times(1.0).filter(|_| signals.tokens > 0).ok_or_else(none)?;
    let total: f64 = products.iter().step_by(n + 1).sum();
    if layer_norm {
        // The direction of ones, along which nothing lies, comes first by force and is left out.
        products.iter_mut().for_each(|c| *c += (2.0 * total + 1.0) / n as f64);
    }
    let found = symmetric_eigen(&products, n);
    let found = found.get(usize::from(layer_norm)..).unwrap_or_default();
    let mut shares: Vec<f32> = found.iter().map(|(value, _)| if total > 0.0 { (value / total) as f32 } else { 0.0 }).collect();
    shares.resize(n, 0.0);
    Ok((shares, found.iter().flat_map(|(_, v)| v.iter().copied()).collect()))
}

/// `[n, hidden]`: from a state of the stream to its n new channels.
fn turn(directions: &[f64], hidden: usize, n: usize, layer_norm: bool) -> Result<Tensor> {
    let kept = if layer_norm { n.saturating_sub(1) } else { n };
    let top = directions.get(..kept * hidden).unwrap_or_default().to_vec();
    let top = Tensor::from_vec(top, (kept, hidden), &Device::Cpu)?;
    if !layer_norm {
        return Ok(top);
    }
    // Helmert's contrasts: n − 1 orthonormal columns whose entries sum to zero.
    let mut contrasts = vec![0.0; n * kept];
    for (i, row) in contrasts.chunks_mut(kept.max(1)).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            let length = (((j + 1) * (j + 2)) as f64).sqrt();
            *x = match i.cmp(&(j + 1)) {
                std::cmp::Ordering::Less => 1.0 / length,
                std::cmp::Ordering::Equal => -((j + 1) as f64) / length,
                std::cmp::Ordering::Greater => 0.0,
            };
        }
    }
    Ok(Tensor::from_vec(contrasts, (n, kept), &Device::Cpu)?.matmul(&top)?)
}

/// Turns a model whose norms are folded; channels from `n` on are zeros.
fn rotate(model: &mut Transformer, reads: &[Read], directions: &[f64], n: usize) -> Result<()> {
    let hidden = model.blueprint().hidden;
    let layer_norm = model.blueprint().norm.kind == NormKind::Layer;
    let turn = turn(directions, hidden, n, layer_norm)?; // [n, hidden]
    let back = turn.t()?.contiguous()?; // [hidden, n]
    let size = (n as f64 / hidden as f64).sqrt();
    let pad = |t: Tensor, dim: usize| -> Result<Tensor> { Ok(t.pad_with_zeros(dim, 0, hidden - n)?) };
    for slot in tables(model) {
        let table = (wide(model, &slot)?.matmul(&back)? * size)?;
        put(model, &slot, &pad(table, 1)?)?;
    }
    for slot in writers(model) {
        let w = wide(model, &slot)?;
        let new = if w.rank() == 1 { turn.matmul(&w.unsqueeze(1)?)?.squeeze(1)? } else { turn.matmul(&w)? };
        put(model, &slot, &pad((new * size)?, 0)?)?;
    }
    for read in reads {
        for slot in &read.readers {
            let w = wide(model, slot)?;
            let mut new = w.matmul(&back)?;
            if layer_norm {
                new = new.broadcast_add(&(w.sum_keepdim(1)? / n as f64)?)?;
            }
            put(model, slot, &pad(new, 1)?)?;
        }
        let weight = Tensor::full(1.0 / size, n, &Device::Cpu)?;
        put(model, &format!("{}.weight", read.norm), &pad(weight, 0)?)?;
        let bias = format!("{}.bias", read.norm);
        if model.params().has(&bias) {
            put(model, &bias, &pad(Tensor::ones(n, DType::F64, &Device::Cpu)?, 0)?)?;
        }
    }
    Ok(())
}

impl Criterion for SliceGpt {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, _: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Hidden) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it cuts the residual stream: `m.hidden`" });
        }
        let hint = "what it ranks are directions that only its turn makes channels of; write `prune m.hidden by … using slice(…)`";
        Err(PruneError::ScoresNothing { method: NAME, hint })
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }

    fn unties_head(&self) -> bool {
        true
    }

    fn updates_weights(&self) -> bool {
        true
    }

    fn holds_products(&self) -> bool {
        true
    }
}

fn refused<T>(what: &'static str, found: &str, expected: &str) -> Result<T> {
    Err(PruneError::Invalid { what, found: found.into(), expected: expected.into() })
}

impl Layerwise for SliceGpt {
    /// Not block by block: the turn is the whole model's.
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        if let Some(kind) = request.sites.kinds().into_iter().find(|k| *k != SiteKind::Hidden) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it cuts the residual stream: `m.hidden`" });
        }
        supported(model)?;
        let hidden = model.blueprint().hidden;
        if request.sites.count(SiteKind::Hidden) < hidden || !request.protect.is_empty() {
            return refused("selection of slice", "some channels", "all of `m.hidden`: after the turn no channel is what it was");
        }
        if !request.removed.is_empty() {
            return refused("model that slice turns", "masked units or weights", "`compact` before it, and single weights pruned after it");
        }
        if request.step.is_some() {
            return refused("`rescore` of slice", "a step", "no `rescore`: the directions of a turned stream are the same");
        }
        let mut turned = model.untied()?;
        let reads = reads(&turned)?;
        fold(&mut turned, &reads)?;
        let (shares, directions) = directions(&turned, data, progress)?;
        let scores = Scores { sites: [(KEY, shares)].into(), ..Scores::default() }.checked(NAME)?;
        let chosen = select(&scores, request, &Shape::of(&turned, request.sites)?)?;
        // The turn puts what stays first, whatever ties.
        let n = chosen.sites.get(&KEY).map_or(hidden, Vec::len);
        let least = if turned.blueprint().norm.kind == NormKind::Layer { 2 } else { 1 };
        if n < least {
            return refused("channels that slice leaves", &n.to_string(), "at least one direction, and one channel more with a LayerNorm");
        }
        rotate(&mut turned, &reads, &directions, n)?;
        let decision = Decision { sites: [(KEY, (0..n).collect())].into(), ..Decision::default() };
        *model = turned;
        surgery::mask(model, removed, &decision)?;
        Ok((decision, scores))
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(SliceGpt))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: turns(needs_data(criterion(
        "slice",
        "Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns (2024), sec. 3",
        &[CALIBRATION],
        &[SiteKind::Hidden],
        "Turns the residual stream onto its principal directions over all norms' outputs and cuts the smallest. Nothing cut, nothing changes.\n\n\
         Mind: one turn serves the whole model, so that the result keeps its family's stock form. The paper turns each block on its own and puts a \
         matrix into every residual shortcut, Q of one block to Q of the next: that cuts better, but it is another architecture, which no stock \
         program loads. A head that shares the table of embeddings gets a matrix of its own, so a small cut may add parameters. Norms' weights \
         move into the matrices that read them; kept indices are those of directions, the largest first. It is for networks with norms before \
         their sublayers (Llama, Mistral, Qwen, Phi-3, Mixtral, GPT-2, GPT-Neo, GPT-NeoX, CodeGen, OPT, Falcon); `compact` before anything else \
         changes weights.\n\n\
         ```prune\nedition 2026\nmodel m = builtin(\"tiny-llama\")\ndata  d = builtin(\"tales\")\nprune m.hidden by 20% using slice(on = d.train.sample(64, seed = 0))\ncompact m\n```",
    ))),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Three channels in two for an RMS norm; for a LayerNorm two channels hold one direction, as (v, −v)/√2.
    #[test]
    fn turns_by_hand() {
        let eye = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let rms = turn(&eye, 3, 2, false).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(rms, [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]);
        let half = 0.5f64.sqrt();
        let layer = turn(&[half, -half, 0.0], 3, 2, true).unwrap().to_vec2::<f64>().unwrap();
        for (row, sign) in layer.iter().zip([1.0, -1.0]) {
            for (x, y) in row.iter().zip([0.5 * sign, -0.5 * sign, 0.0]) {
                assert!((x - y).abs() < 1e-15, "{layer:?}");
            }
        }
    }
}
