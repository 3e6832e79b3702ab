//! Layer-wise relevance propagation: how much of the right answer flows through a unit.
//!
//! Yeom et al., Pruning by explaining: a novel criterion for deep neural network pruning (2021), eq. 3-5; Bach et al., On Pixel-Wise Explanations
//! for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation (2015). Relevance starts as the output of the true class (of each
//! next token for a language model) and goes back through a linear layer `z_k = Σ_j w_kj a_j + b_k` by the ε rule,
//! `R_j = a_j Σ_k w_kj R_k / (z_k + ε·sign z_k)`, sign 0 = 1, or the z⁺ rule, where only positive products and no bias count. A unit's score is
//! the sum over tokens of |R|, of a head the sum over its dimensions first.
//!
//! What the papers have no rule for, as in Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation (2022), and
//! Achtibat et al., AttnLRP (2024): activations and norms pass relevance on; a gated product gives each factor half; attention weights are
//! constants, so relevance goes to the values; a sum, and a context, gives each summand its share of it (z⁺: of the magnitudes). Relevance is conserved but for
//! the shares of biases and of ε.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};
use prunectl_model::{Activation, Batch, Gates, Head, Labels, Layout, ModelError, Pick, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, param, within};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

const NAME: &str = "lrp";
/// Keeps a z⁺ of nothing from dividing by zero, as the authors do.
const TINY: f64 = 1e-9;

#[derive(Clone, Copy)]
enum Rule {
    Epsilon(f64),
    ZPlus,
}

struct Lrp {
    rule: Rule,
    by_layer: bool,
}

fn positive(t: &Tensor) -> Result<Tensor> {
    Ok(t.maximum(0.0)?)
}

fn negative(t: &Tensor) -> Result<Tensor> {
    Ok(t.minimum(0.0)?)
}

/// z + ε·sign z, sign 0 = 1.
fn stabilised(z: &Tensor, eps: f64) -> Result<Tensor> {
    let sign = ((z.ge(0.0)?.to_dtype(z.dtype())? * 2.0)? - 1.0)?;
    Ok((z + (sign * eps)?)?)
}

/// x `[.., n]` · wᵀ `[m, n]`, to `[.., m]`.
fn times(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (rows, n) = (x.elem_count() / x.dim(D::Minus1)?.max(1), x.dim(D::Minus1)?);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = w.dim(0)?;
    }
    Ok(x.reshape((rows, n))?.matmul(&w.t()?.contiguous()?)?.reshape(shape)?)
}

impl Rule {
    /// Relevance of the inputs x `[.., in]` of a linear layer, of its outputs' relevance `[.., out]`.
    fn linear(self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, relevance: &Tensor) -> Result<Tensor> {
        let back = |share: &Tensor, w: &Tensor| times(share, &w.t()?.contiguous()?);
        match self {
            Self::Epsilon(eps) => {
                let z = times(x, w)?;
                let z = match bias {
                    Some(b) => z.broadcast_add(b)?,
                    None => z,
                };
                Ok((x * back(&relevance.div(&stabilised(&z, eps)?)?, w)?)?)
            }
            Self::ZPlus => {
                let (above, below) = (positive(x)?, negative(x)?);
                let (up, down) = (positive(w)?, negative(w)?);
                let z = (times(&above, &up)? + times(&below, &down)?)?;
                let share = relevance.div(&(z + TINY)?)?;
                Ok(((above * back(&share, &up)?)? + (below * back(&share, &down)?)?)?)
            }
        }
    }

    /// Relevance of the summands of a sum.
    fn sum(self, summands: &[&Tensor], relevance: &Tensor) -> Result<Vec<Tensor>> {
        let parts: Vec<Tensor> = match self {
            Self::Epsilon(_) => summands.iter().map(|s| (*s).clone()).collect(),
            Self::ZPlus => summands.iter().map(|s| s.abs()).collect::<candle_core::Result<_>>()?,
        };
        let mut whole = relevance.zeros_like()?;
        for part in &parts {
            whole = (whole + part)?;
        }
        let whole = match self {
            Self::Epsilon(eps) => stabilised(&whole, eps)?,
            Self::ZPlus => (whole + TINY)?,
        };
        let share = relevance.div(&whole)?;
        Ok(parts.iter().map(|p| p.mul(&share)).collect::<candle_core::Result<_>>()?)
    }

    /// Relevance of the values v `[b, h, s, d]` of contexts `Σ_k a[q, k] v[k]`, weights a `[b, h, s, s]` constant.
    fn attention(self, v: &Tensor, weights: &Tensor, relevance: &Tensor) -> Result<Tensor> {
        let (v, eps) = match self {
            Self::Epsilon(eps) => (v.clone(), Some(eps)),
            // A token that attends to nothing but negative values would lose all of it to the positive parts alone.
            Self::ZPlus => (v.abs()?, None),
        };
        let context = weights.matmul(&v.contiguous()?)?;
        let whole = match eps {
            Some(eps) => stabilised(&context, eps)?,
            None => (context + TINY)?,
        };
        let share = relevance.div(&whole)?;
        Ok((v * weights.transpose(2, 3)?.contiguous()?.matmul(&share.contiguous()?)?)?)
    }
}

/// Everything that was seen in a pass, f64.
#[derive(Default)]
struct Seen(BTreeMap<(usize, Point), Tensor>);

impl Tap for Seen {
    fn wants(&self, _: usize, point: Point) -> bool {
        use Point::*;
        matches!(
            point,
            BlockInput | AttentionInput | Values | AttentionProbs | HeadContext | AttentionOutput | MlpInput | Intermediate | MlpOutput
        )
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        self.0.insert((layer, point), x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?);
        Ok(())
    }
}

/// What stands between the states and the matrix of the outputs: a dense layer, its activation, and a LayerNorm with this epsilon.
struct Front {
    stem: &'static str,
    activation: Activation,
    norm: Option<f64>,
}

/// One batch's relevance.
struct Flow<'a> {
    model: &'a Transformer,
    rule: Rule,
    seen: Seen,
    /// Σ |R| over tokens, by site.
    sums: BTreeMap<Key, Vec<f64>>,
}

impl Flow<'_> {
    fn parameter(&self, slot: &str) -> Result<Option<Tensor>> {
        let found = self.model.params().get(slot);
        Ok(found.map(|t| t.to_device(&Device::Cpu)?.to_dtype(DType::F64)).transpose()?)
    }

    /// The inputs' relevance of a linear layer of the model.
    fn linear(&self, stem: &str, x: &Tensor, relevance: &Tensor) -> Result<Tensor> {
        let missing = || ModelError::MissingSlot { slot: format!("{stem}.weight") };
        let w = self.parameter(&format!("{stem}.weight"))?.ok_or_else(missing)?;
        self.rule.linear(x, &w, self.parameter(&format!("{stem}.bias"))?.as_ref(), relevance)
    }

    fn add(&mut self, key: Key, per_unit: &Tensor) -> Result<()> {
        let Some(sums) = self.sums.get_mut(&key) else { return Ok(()) };
        let found = per_unit.abs()?.flatten_to(1)?.sum(0)?.to_vec1::<f64>()?;
        sums.iter_mut().zip(found).for_each(|(s, v)| *s += v);
        Ok(())
    }

    /// From the relevance of what attention adds to that of its input.
    fn attention(&mut self, layer: usize, relevance: &Tensor) -> Result<Option<Tensor>> {
        let take = |point| self.seen.0.get(&(layer, point)).cloned();
        let (Some(input), Some(values), Some(weights), Some(context)) =
            (take(Point::AttentionInput), take(Point::Values), take(Point::AttentionProbs), take(Point::HeadContext))
        else {
            return Ok(None);
        };
        let (b, s, heads, width) = context.dims4()?;
        let groups = values.dim(1)?;
        let size = heads / groups.max(1);
        let stem = format!("layers.{layer}.attention");
        let own = self.linear(&format!("{stem}.o"), &context.reshape((b, s, heads * width))?, relevance)?;
        let own = own.reshape((b, s, heads, width))?;
        self.add(Key::of(SiteKind::Heads, layer), &own.sum(3)?)?;
        self.add(Key::of(SiteKind::KvGroups, layer), &own.reshape((b, s, groups, size * width))?.sum(3)?)?;
        // [b, heads, s, head_dim], a group's values repeated for each of its query heads.
        let spread = values.unsqueeze(2)?.broadcast_as((b, groups, size, s, width))?.reshape((b, heads, s, width))?;
        let back = self.rule.attention(&spread, &weights, &own.transpose(1, 2)?.contiguous()?)?;
        let back = back.reshape((b, groups, size, s, width))?.sum(2)?.transpose(1, 2)?.contiguous()?.reshape((b, s, groups * width))?;
        Ok(Some(self.linear(&format!("{stem}.v"), &input, &back)?))
    }

    /// From the relevance of what the MLP adds to that of its input.
    fn mlp(&mut self, layer: usize, relevance: &Tensor) -> Result<Option<Tensor>> {
        let take = |point| self.seen.0.get(&(layer, point)).cloned();
        let (Some(input), Some(inner)) = (take(Point::MlpInput), take(Point::Intermediate)) else { return Ok(None) };
        let stem = format!("layers.{layer}.mlp");
        let own = self.linear(&format!("{stem}.down"), &inner, relevance)?;
        self.add(Key::of(SiteKind::Neurons, layer), &own)?;
        if !self.model.blueprint().mlp.gated {
            return Ok(Some(self.linear(&format!("{stem}.up"), &input, &own)?));
        }
        let half = (own * 0.5)?;
        Ok(Some((self.linear(&format!("{stem}.up"), &input, &half)? + self.linear(&format!("{stem}.gate"), &input, &half)?)?))
    }

    /// From the relevance of a block's output to that of its input.
    fn block(&mut self, layer: usize, relevance: Tensor) -> Result<Tensor> {
        let take = |point| self.seen.0.get(&(layer, point)).cloned();
        let Some(x) = take(Point::BlockInput) else { return Ok(relevance) };
        let (attended, fed) = (take(Point::AttentionOutput), take(Point::MlpOutput));
        let plus = |a: Tensor, b: Option<Tensor>| -> Result<Tensor> {
            Ok(match b {
                Some(b) => (a + b)?,
                None => a,
            })
        };
        if matches!(self.model.blueprint().layout, Layout::Parallel | Layout::ParallelOneNorm) {
            let summands: Vec<&Tensor> = std::iter::once(&x).chain(&attended).chain(&fed).collect();
            let mut parts = self.rule.sum(&summands, &relevance)?.into_iter();
            let mut own = parts.next().unwrap_or(relevance);
            if attended.is_some()
                && let Some(part) = parts.next()
            {
                own = plus(own, self.attention(layer, &part)?)?;
            }
            if fed.is_some()
                && let Some(part) = parts.next()
            {
                own = plus(own, self.mlp(layer, &part)?)?;
            }
            return Ok(own);
        }
        // What the MLP is added to: the sum before it, in a post-norm block its norm.
        let before = match (&attended, self.model.blueprint().layout) {
            (_, Layout::Post) => take(Point::MlpInput).unwrap_or_else(|| x.clone()),
            (Some(o), _) => (&x + o)?,
            (None, _) => x.clone(),
        };
        let mut relevance = relevance;
        if let Some(d) = &fed {
            let parts = self.rule.sum(&[&before, d], &relevance)?;
            if let [own, given] = parts.as_slice() {
                relevance = plus(own.clone(), self.mlp(layer, given)?)?;
            }
        }
        if let Some(o) = &attended {
            let parts = self.rule.sum(&[&x, o], &relevance)?;
            if let [own, given] = parts.as_slice() {
                relevance = plus(own.clone(), self.attention(layer, given)?)?;
            }
        }
        Ok(relevance)
    }

    /// Relevance of the last block's output x `[b, s, hidden]`, and the sum of the outputs that it explains.
    fn head(&self, batch: &Batch, x: &Tensor, context: &prunectl_model::Context) -> Result<(Tensor, f64)> {
        let refuse = |found: &str| PruneError::Invalid {
            what: "head of a model that lrp explains",
            found: found.to_owned(),
            expected: "a classifier, one value, or a language model (masked ones, too) without a projection before its logits".into(),
        };
        let host = |t: &Tensor| -> Result<Tensor> { Ok(t.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?) };
        let (b, s, hidden) = x.dims3()?;
        // Rows of the states that speak, and which output of each is explained.
        let states = host(&self.model.last_norm(x, context, &mut ())?)?.reshape((b * s, hidden))?;
        let (rows, outputs, stem, front) = match &self.model.blueprint().head {
            Head::Tokens { tied, transform, project: false, .. } => {
                let scored = self.model.scored_tokens(batch)?;
                let front = transform.map(|(activation, eps)| Front { stem: "head.transform", activation, norm: Some(eps) });
                (scored.rows, scored.targets, if *tied { "embeddings.token" } else { "head" }, front)
            }
            Head::Sequence { .. } if self.model.blueprint().projects_out() => return Err(refuse("a classifier behind a projection")),
            Head::Sequence { pick, dense, regression, .. } => {
                let classes: Vec<u32> = match (&batch.labels, regression) {
                    (_, true) => vec![0; b],
                    (Some(Labels::Classes(t)), _) => t.to_dtype(DType::U32)?.to_vec1()?,
                    _ => return Err(PruneError::Missing { method: NAME, needs: "classes as labels".into() }),
                };
                let last: Vec<u32> = match pick {
                    Pick::First => vec![0; b],
                    Pick::Last { pad } => batch.last(*pad)?,
                };
                let front = dense.map(|activation| Front { stem: "pooler", activation, norm: None });
                (last.iter().enumerate().map(|(row, t)| row as u32 * s as u32 + t).collect(), classes, "classifier", front)
            }
            Head::Tokens { .. } => return Err(refuse("a token head behind a projection")),
            Head::Spans => return Err(refuse("answer spans")),
            Head::Encode { .. } => return Err(refuse("embeddings")),
        };
        if rows.is_empty() {
            return Ok((Tensor::zeros((b, s, hidden), DType::F64, &Device::Cpu)?, 0.0));
        }
        let index = Tensor::from_vec(rows.clone(), rows.len(), &Device::Cpu)?;
        let one = states.index_select(&index, 0)?;
        let inner = match &front {
            None => one.clone(),
            Some(front) => {
                let x = activate(front.activation, &self.forward(front.stem, &one)?)?;
                match front.norm {
                    Some(eps) => self.layer_norm("head.norm", &x, eps)?,
                    None => x,
                }
            }
        };
        // The explained outputs alone: one row of the matrix for each state.
        let w = self.parameter(&format!("{stem}.weight"))?.ok_or_else(|| ModelError::MissingSlot { slot: format!("{stem}.weight") })?;
        let chosen = Tensor::from_vec(outputs.clone(), outputs.len(), &Device::Cpu)?;
        let w = w.index_select(&chosen, 0)?;
        let products = (&inner * &w)?;
        let bias = match self.parameter(&if stem == "classifier" { "classifier.bias".to_owned() } else { "head.bias".to_owned() })? {
            Some(bias) => Some(bias.index_select(&chosen, 0)?),
            None => None,
        };
        let z = products.sum(1)?;
        let z = match &bias {
            Some(bias) => (z + bias)?,
            None => z,
        };
        let relevance = match self.rule {
            Rule::Epsilon(eps) => products.broadcast_mul(&z.div(&stabilised(&z, eps)?)?.unsqueeze(1)?)?,
            Rule::ZPlus => {
                let products = positive(&products)?;
                products.broadcast_mul(&z.div(&(products.sum(1)? + TINY)?)?.unsqueeze(1)?)?
            }
        };
        // The activation and the norm behind the dense layer pass it on.
        let relevance = match &front {
            Some(front) => self.linear(front.stem, &one, &relevance)?,
            None => relevance,
        };
        let all = Tensor::zeros((b * s, hidden), DType::F64, &Device::Cpu)?.index_add(&index, &relevance, 0)?;
        Ok((all.reshape((b, s, hidden))?, z.sum_all()?.to_scalar::<f64>()?))
    }

    fn layer_norm(&self, stem: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        let mut out = x.broadcast_div(&deviation)?;
        if let Some(w) = self.parameter(&format!("{stem}.weight"))? {
            out = out.broadcast_mul(&w)?;
        }
        if let Some(b) = self.parameter(&format!("{stem}.bias"))? {
            out = out.broadcast_add(&b)?;
        }
        Ok(out)
    }

    fn forward(&self, stem: &str, x: &Tensor) -> Result<Tensor> {
        let missing = || ModelError::MissingSlot { slot: format!("{stem}.weight") };
        let z = times(x, &self.parameter(&format!("{stem}.weight"))?.ok_or_else(missing)?)?;
        Ok(match self.parameter(&format!("{stem}.bias"))? {
            Some(b) => z.broadcast_add(&b)?,
            None => z,
        })
    }

    /// One batch: the sums grow; what the outputs and the first block's inputs sum up to.
    fn batch(&mut self, batch: &Batch) -> Result<(f64, f64)> {
        self.seen = Seen::default();
        let (x, context) = self.model.hidden(batch, &Gates::default(), &mut self.seen)?;
        let (mut relevance, out) = self.head(batch, &x, &context)?;
        for layer in (0..self.model.n_layers()).rev() {
            relevance = self.block(layer, relevance)?;
            self.seen.0.retain(|(l, _), _| *l != layer);
        }
        Ok((out, relevance.sum_all()?.to_scalar::<f64>()?))
    }
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match activation {
        Activation::GeluErf => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (x / ((x * -1.702)?.exp()? + 1.0)?)?,
        Activation::Silu => x.silu()?,
        Activation::Relu => x.relu()?,
        Activation::Tanh => x.tanh()?,
    })
}

impl Lrp {
    fn flow<'a>(&self, model: &'a Transformer, sites: &Sites) -> Result<Flow<'a>> {
        let mut sums = BTreeMap::new();
        for key in sites.units.keys() {
            sums.insert(*key, vec![0.0; count(model, *key)?]);
        }
        Ok(Flow { model, rule: self.rule, seen: Seen::default(), sums })
    }
}

impl Criterion for Lrp {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let routed = model.dims().iter().position(|d| d.experts > 0).map(|layer| format!("experts in layer {layer}"));
        let behind = (model.blueprint().layout == Layout::Sandwich).then(|| "norms behind the sublayers, before they are added".to_owned());
        if let Some(found) = routed.or(behind) {
            let expected = "dense blocks with a norm before or after each residual sum; take `taylor` or `fisher` here".into();
            return Err(PruneError::Invalid { what: "network that lrp explains", found, expected });
        }
        let wrong = |kind| PruneError::Site { method: NAME, kind, hint: "it scores heads, KV groups and the neurons of dense MLPs" };
        if !sites.weights.is_empty() {
            return Err(wrong(SiteKind::Weights));
        }
        let known = |k: &&Key| matches!(k.kind, SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons);
        if let Some(key) = sites.units.keys().find(|k| !known(k)) {
            return Err(wrong(key.kind));
        }
        let mut flow = self.flow(model, sites)?;
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            flow.batch(&batch)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if done == 0 {
            return Err(PruneError::NoData { method: NAME, batches: 0 });
        }
        let scale =
            |values: &[f64]| if self.by_layer { Some(values.iter().sum::<f64>()).filter(|s| *s != 0.0).unwrap_or(1.0) } else { 1.0 };
        let sites = flow.sums.into_iter().map(|(k, v)| {
            let whole = scale(&v);
            (k, v.into_iter().map(|s| (s / whole) as f32).collect())
        });
        Scores { sites: sites.collect(), ..Scores::default() }.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let rule = if args.word("rule")? == "zplus" { Rule::ZPlus } else { Rule::Epsilon(args.float("epsilon")?) };
    Ok(Box::new(Lrp { rule, by_layer: args.word("normalize")? == "layer" }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "lrp",
        "Yeom et al., Pruning by explaining: a novel criterion for deep neural network pruning (2021), eq. 3-5",
        &[
            CALIBRATION,
            param("rule", Ty::OneOf(&["epsilon", "zplus"]), "epsilon", "How relevance is shared among a layer's inputs."),
            within(param("epsilon", Ty::Float, "1e-2", "ε of the ε rule: more of it makes scores calmer and loses relevance."), 1e-12, 1e6),
            param(
                "normalize",
                Ty::OneOf(&["none", "layer"]),
                "none",
                "`layer` divides the scores of each layer by their sum, as the published code does.",
            ),
        ],
        INNER_SITES,
        "Layer-wise relevance propagation: relevance that flows through a unit, `Σ_x |R|`. It starts at the output of the true class, or of each next token.\n\n\
         Mind: relevance is conserved, Σ in = Σ out, up to the shares of biases and of ε; the published code's rule named epsilon is z⁺ (`rule = zplus`). \
         Norms and activations pass it on, attention weights are constants. Labels are needed for a classifier and a masked language model. Experts, norms behind the sublayers (Gemma 2 and 3), answer spans and bare encoders are refused.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using lrp(on = d.train.sample(64, seed = 0), rule = zplus) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use prunectl_model::LoadOptions;

    use super::*;

    fn golden(path: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods").join(path)
    }

    /// a = (1, 2), w = (3, −1), z = 1, R = 1: the ε rule gives (3, −2) / (1 + ε); z⁺ gives all of it to the first input.
    #[test]
    fn rules_by_hand() {
        let t = |v: &[[f64; 2]; 1]| Tensor::new(v, &Device::Cpu).unwrap();
        let (x, w, r) = (t(&[[1.0, 2.0]]), t(&[[3.0, -1.0]]), Tensor::new(&[[1.0f64]], &Device::Cpu).unwrap());
        let given = |rule: Rule| rule.linear(&x, &w, None, &r).unwrap().to_vec2::<f64>().unwrap().remove(0);
        let found = given(Rule::Epsilon(0.25));
        assert!((found[0] - 2.4).abs() < 1e-15 && (found[1] + 1.6).abs() < 1e-15, "{found:?}");
        let found = given(Rule::ZPlus);
        assert!((found[0] - 1.0).abs() < 1e-8 && found[1] == 0.0, "{found:?}");
    }

    /// The case's MLP, layer by layer through the rules that the criterion uses.
    #[test]
    fn equals_the_formula_and_the_authors() {
        let load = |file: &str| candle_core::safetensors::load(golden("12_lrp").join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let case: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("12_lrp/case.json")).unwrap()).unwrap();
        let f64s = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let layer = |i: usize| (f64s(&inputs[&format!("fc{i}.weight")]), f64s(&inputs[&format!("fc{i}.bias")]));
        let mut activations = vec![f64s(&inputs["x"])];
        for i in 0..2 {
            let (w, b) = layer(i);
            activations.push(times(&activations[i], &w).unwrap().broadcast_add(&b).unwrap().relu().unwrap());
        }
        let mut worst = 0f64;
        for (rule, prefix, with_bias) in [
            (Rule::Epsilon(1e-6), "formula.eps1e-06", true),
            (Rule::Epsilon(0.25), "formula.eps0.25", true),
            (Rule::ZPlus, "peer.zplus", false),
        ] {
            let mut relevance = f64s(&expected["R_out"]);
            for i in (0..3).rev() {
                let (w, b) = layer(i);
                relevance = rule.linear(&activations[i], &w, with_bias.then_some(&b), &relevance).unwrap();
                // The inputs of the first layer have signs, which the published z⁺ does not look at.
                if i == 0 && !with_bias {
                    continue;
                }
                let score = relevance.abs().unwrap().sum(0).unwrap();
                let mut pairs = vec![(format!("{prefix}.R{i}"), relevance.clone())];
                if i > 0 {
                    let share = score.broadcast_div(&score.sum_all().unwrap()).unwrap();
                    pairs.push((format!("{prefix}.score.hidden{}", i - 1), score));
                    pairs.push((format!("{prefix}.score_normalised.hidden{}", i - 1), share));
                }
                for (name, ours) in pairs {
                    let tolerance = |k: &str| case["expected"][&name][k].as_f64().unwrap();
                    let theirs = f64s(&expected[&name]).flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    for (a, b) in ours.flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().zip(&theirs) {
                        assert!((a - b).abs() <= tolerance("atol") + tolerance("rtol") * b.abs(), "{name}: {a} {b}");
                        worst = worst.max((a - b).abs());
                    }
                }
            }
        }
        println!("golden 12_lrp: worst error {worst:.1e}");
    }

    /// Σ in = Σ out where there is no bias: a small Llama under both rules.
    #[test]
    fn relevance_is_conserved() {
        let model = prunectl_model::load(&golden("models/llama-tiny"), &LoadOptions::default()).unwrap().to_dtype(DType::F64).unwrap();
        let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % 60).collect();
        let batch = Batch::new(Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap());
        for rule in [Rule::Epsilon(1e-9), Rule::ZPlus] {
            let lrp = Lrp { rule, by_layer: false };
            let mut sites = Sites::default();
            sites.add(Key::of(SiteKind::Neurons, 1), 0..48);
            let mut flow = lrp.flow(&model, &sites).unwrap();
            let (out, given) = flow.batch(&batch).unwrap();
            assert!((out - given).abs() <= 1e-3 * out.abs().max(1.0), "{out} out, {given} in");
            assert!(flow.sums[&Key::of(SiteKind::Neurons, 1)].iter().all(|v| v.is_finite() && *v >= 0.0));
        }
    }

    /// A masked language model: through the output's transform, and, its biases taken away, conserved.
    #[test]
    fn masked_language_models_are_explained() {
        let mut model =
            prunectl_model::load(&golden("../families/bert_mlm"), &LoadOptions::default()).unwrap().to_dtype(DType::F64).unwrap();
        let biases: Vec<String> = model.params().iter().map(|(slot, _)| slot.to_owned()).filter(|s| s.ends_with(".bias")).collect();
        for slot in biases.iter().filter(|s| !s.contains("norm")) {
            let zeros = model.params().require(slot).unwrap().zeros_like().unwrap();
            model.params_mut().set(slot.clone(), zeros);
        }
        let ids: Vec<u32> = (0..16).map(|i| (i * 7 + 3) % 50).collect();
        let mut batch = Batch::new(Tensor::from_vec(ids, (2, 8), &Device::Cpu).unwrap());
        let labels: Vec<i64> = (0..16).map(|i| if i % 5 == 1 { i } else { -100 }).collect();
        batch.labels = Some(Labels::Tokens(Tensor::from_vec(labels, (2, 8), &Device::Cpu).unwrap()));
        for rule in [Rule::Epsilon(1e-9), Rule::ZPlus] {
            let lrp = Lrp { rule, by_layer: false };
            let mut sites = Sites::default();
            let width = model.dims()[0].ffn;
            sites.add(Key::of(SiteKind::Neurons, 0), 0..width);
            let mut flow = lrp.flow(&model, &sites).unwrap();
            let (out, given) = flow.batch(&batch).unwrap();
            assert!((out - given).abs() <= 1e-3 * out.abs().max(1.0), "{out} out, {given} in");
            assert!(flow.sums[&Key::of(SiteKind::Neurons, 0)].iter().all(|v| v.is_finite() && *v >= 0.0));
        }
    }

    /// What it has no rule for is refused by name, before anything runs.
    #[test]
    fn networks_without_a_rule_are_refused_by_name() {
        for (family, says) in
            [("qwen3_moe", "experts in layer 0"), ("mixtral", "experts in layer 0"), ("gemma2", "norms behind the sublayers")]
        {
            let model = prunectl_model::load(&golden(&format!("../families/{family}")), &LoadOptions::default()).unwrap();
            let lrp = Lrp { rule: Rule::ZPlus, by_layer: false };
            let mut sites = Sites::default();
            sites.add(Key::of(SiteKind::Heads, 0), 0..model.dims()[0].q_heads);
            let none = &mut crate::data::InMemory::default();
            let text = lrp.score(&model, &sites, none, &()).unwrap_err().to_string();
            assert!(text.contains(says), "{family}: {text}");
        }
    }
}
