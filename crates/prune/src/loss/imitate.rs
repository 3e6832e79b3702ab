//! How far a student is from its teacher, as pure functions of tensors. The teacher's side is detached by the caller; padding never counts.

use candle_core::{D, DType, Tensor};
use prunectl_kernels::kl_div;

use crate::error::Result;

/// Stands for −∞ where a key is not seen: its exponential is 0, and differences of two of them are 0, not NaN.
const HIDDEN_LOGIT: f64 = -1e30;
/// Squared distances are at least this before the root, as in Park et al.'s code: the root's gradient stays finite.
const LEAST_SQUARE: f64 = 1e-12;

/// Σ over real tokens of the mean squared difference of their channels (Jiao et al., TinyBERT (2020), eq. 8): `[b, s, d]`, `[b, s, d]`,
/// `[b, s, 1]`.
pub(crate) fn squares(ours: &Tensor, theirs: &Tensor, real: &Tensor) -> Result<Tensor> {
    Ok((ours - theirs)?.sqr()?.mean_keepdim(D::Minus1)?.mul(real)?.sum_all()?)
}

/// Σ over real tokens of 1 − cos (Sanh et al., DistilBERT (2019), sec. 3).
pub(crate) fn cosines(ours: &Tensor, theirs: &Tensor, real: &Tensor) -> Result<Tensor> {
    let product = ours.mul(theirs)?.sum_keepdim(D::Minus1)?;
    let norms = (norm(ours)? * norm(theirs)?)?;
    Ok((product.div(&norms)?.affine(-1.0, 1.0)?.mul(real)?).sum_all()?)
}

/// Σ over examples of the squared distance between the normalised states of their first tokens (Sun et al., Patient Knowledge
/// Distillation (2019), eq. 7).
pub(crate) fn first_tokens(ours: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let first = |x: &Tensor| -> Result<Tensor> {
        let x = x.narrow(1, 0, 1)?;
        Ok(x.broadcast_div(&norm(&x)?)?)
    };
    Ok((first(ours)? - first(theirs)?)?.sqr()?.sum_all()?)
}

/// ‖·‖₂ of the last dimension, kept, at least √[`LEAST_SQUARE`].
fn norm(x: &Tensor) -> Result<Tensor> {
    Ok(x.sqr()?.sum_keepdim(D::Minus1)?.maximum(LEAST_SQUARE)?.sqrt()?)
}

/// Which keys each query sees, 1 or 0, `[b, 1, s, s]`: real keys, for real queries; with `causal` no later ones.
pub(crate) fn seen(real: &Tensor, causal: bool) -> Result<Tensor> {
    let (b, s, _) = real.dims3()?;
    let square = real.broadcast_mul(&real.transpose(1, 2)?)?.reshape((b, 1, s, s))?;
    if !causal {
        return Ok(square);
    }
    let lower: Vec<f64> = (0..s * s).map(|i| if i % s.max(1) <= i / s.max(1) { 1.0 } else { 0.0 }).collect();
    let lower = Tensor::from_vec(lower, (1, 1, s, s), &candle_core::Device::Cpu)?;
    Ok(square.broadcast_mul(&lower.to_dtype(real.dtype())?.to_device(real.device())?)?)
}

/// Σ of squared differences of scores over seen pairs, mean over the heads (TinyBERT, eq. 7, on the scores before the softmax): `[b, h, s, s]`
/// each.
pub(crate) fn score_squares(ours: &Tensor, theirs: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let heads = ours.dim(1)?.max(1) as f64;
    Ok(((ours - theirs)?.sqr()?.broadcast_mul(seen)?.sum_all()? / heads)?)
}

/// Σ over examples of the mean over heads and real queries of KL(softmax theirs ‖ softmax ours) over the keys seen (Wang et al.,
/// MiniLM (2020), eq. 4; MiniLMv2 (2021), eq. 5): `[b, h, s, s]` each.
pub(crate) fn relation_kl(ours: &Tensor, theirs: &Tensor, seen: &Tensor, real: &Tensor) -> Result<Tensor> {
    let (b, h, s, _) = ours.dims4()?;
    let shut = (seen.affine(-1.0, 1.0)? * HIDDEN_LOGIT)?;
    let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_add(&shut)?.reshape((b * h * s, s))?) };
    // A query that is padding sees nothing: all its logits are the same on both sides, and it weighs nothing.
    let each = kl_div(&rows(ours)?, &rows(theirs)?, 1.0)?.reshape((b, h, s))?;
    let queries = real.reshape((b, 1, s))?;
    let lengths = queries.sum_keepdim(2)?.maximum(1.0)?;
    let weights = (queries.broadcast_div(&lengths)? / h.max(1) as f64)?.to_dtype(each.dtype())?;
    Ok(each.broadcast_mul(&weights)?.sum_all()?)
}

/// Scaled dot products of every pair of positions, `x yᵀ / √d`: `[b, h, s, d]` each, keys repeated for the query heads that share them.
pub(crate) fn products(x: &Tensor, y: &Tensor, scale: f64) -> Result<Tensor> {
    let (b, h, s, d) = x.dims4()?;
    let groups = y.dim(1)?;
    let y = match h.checked_div(groups) {
        Some(copies) if copies > 1 => y.unsqueeze(2)?.repeat((1, 1, copies, 1, 1))?.reshape((b, h, s, d))?,
        _ => y.clone(),
    };
    Ok((x.contiguous()?.matmul(&y.transpose(2, 3)?.contiguous()?)? * scale)?)
}

/// `[b, h, s, d]`, whatever its heads, as `[b, n, s, h·d / n]` for `n` relation heads that divide h·d (MiniLMv2, sec. 3.1).
pub(crate) fn regroup(x: &Tensor, n: usize) -> Result<Tensor> {
    let (b, h, s, d) = x.dims4()?;
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((b, s, n, h * d / n.max(1)))?.transpose(1, 2)?.contiguous()?)
}

/// Euclidean distances of all pairs of rows, 0 on the diagonal: `[n, d]` → `[n, n]`.
fn distances(x: &Tensor) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    let squares = x.unsqueeze(0)?.broadcast_sub(&x.unsqueeze(1)?)?.sqr()?.sum(2)?;
    let off: Vec<f64> = (0..n * n).map(|i| if i / n.max(1) == i % n.max(1) { 0.0 } else { 1.0 }).collect();
    let off = Tensor::from_vec(off, (n, n), &candle_core::Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
    Ok(squares.maximum(LEAST_SQUARE)?.sqrt()?.mul(&off)?)
}

/// Mean over all entries of Huber's loss with bend 1.
fn huber(ours: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let apart = (ours - theirs)?.abs()?;
    let near = apart.minimum(1.0)?;
    // ½·near² + (apart − near): quadratic up to 1, linear beyond.
    Ok((((near.sqr()? * 0.5)? + apart)? - near)?.mean_all()?)
}

/// Distances between embeddings, each side divided by its mean distance (Park et al. (2019), eq. 5-6): `[n, d]`, `[n, d']`.
pub(crate) fn distance_relation(ours: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let normal = |x: &Tensor| -> Result<Tensor> {
        let d = distances(x)?;
        let positive = d.gt(0.0)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        let mean = (d.sum_all()? / positive.max(1.0))?.maximum(LEAST_SQUARE)?;
        Ok(d.broadcast_div(&mean)?)
    };
    huber(&normal(ours)?, &normal(theirs)?)
}

/// Cosines of the angles in all triples (eq. 7-8).
pub(crate) fn angle_relation(ours: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let angles = |x: &Tensor| -> Result<Tensor> {
        let apart = x.unsqueeze(0)?.broadcast_sub(&x.unsqueeze(1)?)?;
        let unit = apart.broadcast_div(&norm(&apart)?)?;
        Ok(unit.matmul(&unit.transpose(1, 2)?.contiguous()?)?)
    };
    huber(&angles(ours)?, &angles(theirs)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use candle_core::{Device, Var};

    use super::*;

    struct Case {
        inputs: HashMap<String, Tensor>,
        expected: HashMap<String, Tensor>,
        json: serde_json::Value,
        worst: (f64, String),
    }

    fn flat(t: &Tensor) -> Vec<f64> {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    impl Case {
        fn open() -> Self {
            let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/14_distillation");
            let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
            let json = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
            Self { inputs: load("inputs.safetensors"), expected: load("expected.safetensors"), json, worst: (0.0, String::new()) }
        }

        fn input(&self, name: &str) -> Tensor {
            self.inputs[name].to_dtype(DType::F32).unwrap()
        }

        fn close(&mut self, name: &str, ours: &Tensor) {
            let tolerance = |what: &str| self.json["expected"][name][what].as_f64().unwrap();
            let (rtol, atol) = (tolerance("rtol"), tolerance("atol"));
            let (ours, theirs) = (flat(ours), flat(&self.expected[name]));
            assert_eq!(ours.len(), theirs.len(), "{name}");
            let scale = theirs.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() <= atol + rtol * b.abs(), "{name}: {a} instead of {b}");
                if (a - b).abs() / scale > self.worst.0 {
                    self.worst = ((a - b).abs() / scale, name.to_owned());
                }
            }
        }

        /// A loss of the student's tensor and its gradient, against the case's.
        fn check(&mut self, name: &str, student: &str, loss: impl Fn(&Tensor) -> Tensor) {
            let var = Var::from_tensor(&self.input(student)).unwrap();
            let loss = loss(var.as_tensor());
            self.close(name, &loss);
            let grads = loss.backward().unwrap();
            self.close(&format!("{name}.grad"), grads.get(&var).unwrap());
        }
    }

    /// Values and gradients of the authors' code, or of the papers' formulas in 64 bits, as the case says.
    #[test]
    fn equals_the_golden_losses_and_gradients() {
        let mut case = Case::open();
        let real = case.input("mask").unsqueeze(2).unwrap();
        let n = flat(&real).iter().sum::<f64>();
        let lengths: Vec<f64> = flat(&real).chunks(16).map(|row| row.iter().sum()).collect();
        let pairs: f64 = lengths.iter().map(|l| l * l).sum();
        let over = |t: Tensor, by: f64| (t / by).unwrap();
        for t in [1.0, 2.0, 4.0] {
            let teacher = case.input("logits_t");
            let name = format!("kd.kl_batchmean_T2.T{t}");
            case.check(&name, "logits_s", |s| over(super::super::distill::response(s, &teacher, t).unwrap().sum_all().unwrap(), 4.0));
        }
        let (theirs, w, b) = (case.input("hidden_t"), case.input("proj_weight"), case.input("proj_bias"));
        let all = real.ones_like().unwrap();
        for (name, real, n) in [("hid_mse.mask", &real, n), ("hid_mse.nomask", &all, 64.0)] {
            let vars: Vec<Var> = [case.input("hidden_s"), w.clone(), b.clone()].iter().map(|t| Var::from_tensor(t).unwrap()).collect();
            let projected = prunectl_kernels::linear(vars[0].as_tensor(), vars[1].as_tensor(), Some(vars[2].as_tensor())).unwrap();
            let loss = over(squares(&projected, &theirs, real).unwrap(), n);
            case.close(name, &loss);
            let grads = loss.backward().unwrap();
            for (i, var) in vars.iter().enumerate() {
                case.close(&format!("{name}.grad{i}"), grads.get(var).unwrap());
            }
        }
        let narrow = theirs.narrow(2, 0, 16).unwrap();
        case.check("cos.mask", "hidden_s", |s| over(cosines(s, &narrow, &real).unwrap(), n));
        case.check("pkd", "hidden_s", |s| over(first_tokens(s, &narrow).unwrap(), 4.0));
        let (square, scores) = (seen(&real, false).unwrap(), case.input("att_t"));
        case.check("att_mse.mask", "att_s", |s| over(score_squares(s, &scores, &square).unwrap(), pairs));
        case.check("att_kl.minilm", "att_s", |s| over(relation_kl(s, &scores, &square, &real).unwrap(), 4.0));
        let values = |x: &Tensor| products(x, x, 1.0 / (x.dim(3).unwrap() as f64).sqrt()).unwrap();
        let theirs = values(&case.input("value_t"));
        case.check("value_relation.minilm", "value_s", |s| over(relation_kl(&values(s), &theirs, &square, &real).unwrap(), 4.0));
        let embeddings = case.input("emb_t");
        case.check("rkd.distance", "emb_s", |s| distance_relation(s, &embeddings).unwrap());
        case.check("rkd.angle", "emb_s", |s| angle_relation(s, &embeddings).unwrap());
        println!("golden 14_distillation: worst relative error {:.1e} ({})", case.worst.0, case.worst.1);
    }

    #[test]
    fn a_causal_query_sees_no_later_key_and_no_padding() {
        let real = Tensor::new(&[[[1f32], [1.0], [0.0]]], &Device::Cpu).unwrap();
        assert_eq!(flat(&seen(&real, true).unwrap()), [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(flat(&seen(&real, false).unwrap()), [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
