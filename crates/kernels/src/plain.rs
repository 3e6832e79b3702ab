//! Every kernel once more, written with candle's own differentiable operations: what runs on CUDA and Metal, and what the tests
//! compare the fused CPU code with. All functions expect f32 or f64 and checked shapes.

use crate::activation::Activation;
use crate::attention::AttnMask;
use crate::rope::RopeStyle;
use candle_core::{D, DType, Device, Result, Tensor};

pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// log Σ exp over the last dimension, [.., v] → [.., 1].
pub fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?.broadcast_add(&max)
}

pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let y = centred.broadcast_div(&std)?.broadcast_mul(w)?;
    b.map_or(Ok(y.clone()), |b| y.broadcast_add(b))
}

pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64, offset_one: bool) -> Result<Tensor> {
    let w = if offset_one { (w + 1.0)? } else { w.clone() };
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(&w)
}

/// 1 / (1 + e^-x) as ½(1 + tanh ½x), which overflows nowhere.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}

pub fn activation(act: Activation, x: &Tensor) -> Result<Tensor> {
    match act {
        Activation::GeluErf => (x.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?.affine(0.5, 0.5)?) * x,
        Activation::GeluTanh => {
            let inner = ((x.affine(0.044715, 0.0)? * x.sqr()?)? + x)?;
            inner.affine((2.0 / std::f64::consts::PI).sqrt(), 0.0)?.tanh()?.affine(0.5, 0.5)? * x
        }
        Activation::Silu => sigmoid(x)? * x,
        Activation::QuickGelu => sigmoid(&(x * 1.702)?)? * x,
        Activation::Relu => x.relu(),
    }
}

/// Picks element 0, 2, 4 … (`odd` = 0) or 1, 3, 5 … (`odd` = 1) of the last dimension.
fn every_second(x: &Tensor, odd: usize) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let last = dims.pop().unwrap_or(0);
    dims.extend([last / 2, 2]);
    x.reshape(dims)?.narrow(D::Minus1, odd, 1)?.squeeze(D::Minus1)
}

pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle, rotary_dim: usize) -> Result<Tensor> {
    let head_dim = x.dim(D::Minus1)?;
    let half = rotary_dim / 2;
    let turned = x.narrow(D::Minus1, 0, rotary_dim)?.contiguous()?;
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?); // [b|1, 1, s, r/2]
    let (a, b) = match style {
        RopeStyle::Half => (turned.narrow(D::Minus1, 0, half)?, turned.narrow(D::Minus1, half, half)?),
        RopeStyle::Interleaved => (every_second(&turned, 0)?, every_second(&turned, 1)?),
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = match style {
        RopeStyle::Half => Tensor::cat(&[first, second], D::Minus1)?,
        RopeStyle::Interleaved => Tensor::stack(&[first, second], D::Minus1)?.flatten_from(D::Minus2)?,
    };
    match head_dim - rotary_dim {
        0 => Ok(turned),
        rest => Tensor::cat(&[turned, x.narrow(D::Minus1, rotary_dim, rest)?.contiguous()?], D::Minus1),
    }
}

/// 1 where a query sees a key, [1|b, 1, sq, sk], or nothing when every query sees every key.
fn visible(mask: &AttnMask<'_>, (sq, sk): (usize, usize), device: &Device) -> Result<Option<Tensor>> {
    let by_position = if mask.causal || mask.window.is_some() {
        let mut seen = vec![0u8; sq * sk];
        for (i, row) in seen.chunks_exact_mut(sk.max(1)).enumerate() {
            row[mask.keys_seen_by(i, sq, sk)].fill(1);
        }
        Some(Tensor::from_vec(seen, (1, 1, sq, sk), device)?)
    } else {
        None
    };
    let by_keep = mask.key_keep.map(|keep| keep.ne(0u8)?.unsqueeze(1)?.unsqueeze(1)).transpose()?; // [b, 1, 1, sk]
    match (by_position, by_keep) {
        (Some(p), Some(k)) => Ok(Some(p.broadcast_mul(&k)?)),
        (p, k) => Ok(p.or(k)),
    }
}

/// Softmax over the visible keys; zeros where a query sees none. [b, hq, sq, sk]
pub fn attention_probs(q: &Tensor, k: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    /// A score that no softmax can see, finite so that a row without a visible key stays free of NaN.
    const UNSEEN: f64 = -1e30;
    let (b, hq, sq, d) = q.dims4()?;
    let (_, hkv, sk, _) = k.dims4()?;
    let k = repeat_heads(k, hq / hkv.max(1))?;
    let scores = (q.contiguous()?.matmul(&k.reshape((b, hq, sk, d))?.transpose(2, 3)?)? * scale)?;
    let scores = match softcap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let Some(seen) = visible(mask, (sq, sk), q.device())? else { return softmax(&scores) };
    let seen = seen.broadcast_as(scores.shape())?;
    let unseen = Tensor::full(UNSEEN, scores.shape(), q.device())?.to_dtype(scores.dtype())?;
    let scores = seen.where_cond(&scores, &unseen)?;
    let weight = seen.to_dtype(scores.dtype())?;
    let e = (scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()? * weight)?;
    let sum = e.sum_keepdim(D::Minus1)?;
    let empty = sum.eq(0.0)?.to_dtype(sum.dtype())?;
    e.broadcast_div(&(sum + empty)?)
}

/// [b, hkv, s, d] → [b, hkv · group, s, d], each head `group` times in a row.
fn repeat_heads(x: &Tensor, group: usize) -> Result<Tensor> {
    let (b, h, s, d) = x.dims4()?;
    if group == 1 {
        return x.contiguous();
    }
    x.unsqueeze(2)?.broadcast_as((b, h, group, s, d))?.contiguous()?.reshape((b, h * group, s, d))
}

pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    let probs = attention_probs(q, k, mask, scale, softcap)?;
    let group = q.dim(1)? / v.dim(1)?.max(1);
    probs.matmul(&repeat_heads(v, group)?)
}

pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let chosen = logits.gather(&targets.unsqueeze(1)?.contiguous()?, 1)?;
    (log_sum_exp(logits)? - chosen)?.squeeze(1)
}

pub fn kl_div(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (student, teacher) = ((student / temperature)?, (teacher / temperature)?);
    let log_s = student.broadcast_sub(&log_sum_exp(&student)?)?;
    let log_t = teacher.broadcast_sub(&log_sum_exp(&teacher)?)?;
    (log_t.exp()? * (log_t - log_s)?)?.sum(D::Minus1)
}

/// x [.., in] · wᵀ [in, out] + b on a two-dimensional view.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (out, features) = w.dims2()?;
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(out);
    let rows = x.elem_count() / features.max(1);
    let y = x.reshape((rows, features))?.matmul(&w.t()?)?.reshape(dims)?;
    b.map_or(Ok(y.clone()), |b| y.broadcast_add(b))
}

/// Half-precision arguments are computed in f32 and the result is narrowed back.
pub fn working_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
