//! Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped key/value heads.

use crate::error::KernelError;
use crate::{check, plain};
use candle_core::{DType, Result, Tensor};
use std::ops::Range;

const OP: &str = "attention";

/// Which keys a query sees. Queries are the last `sq` of `sk` positions: query i stands at position i + sk − sq.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttnMask<'a> {
    /// A query sees no later key.
    pub causal: bool,
    /// A query at position p sees key j only if |p − j| < window.
    pub window: Option<usize>,
    /// u8 [b, sk]: 0 hides a key (padding) from every query.
    pub key_keep: Option<&'a Tensor>,
}

impl AttnMask<'_> {
    /// The keys that causality and the window leave to query `i`.
    pub(crate) fn keys_seen_by(&self, i: usize, sq: usize, sk: usize) -> Range<usize> {
        let at = (i + sk).saturating_sub(sq);
        let start = self.window.map_or(0, |w| (at + 1).saturating_sub(w));
        let end = if self.causal { at + 1 } else { self.window.map_or(sk, |w| at.saturating_add(w)) }.min(sk);
        if self.window == Some(0) { 0..0 } else { start.min(end)..end }
    }
}

fn check(q: &Tensor, k: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<()> {
    check::float(OP, "q", q)?;
    check::like(OP, "k", k, q)?;
    let (b, hq, sq, d) = q.dims4()?;
    let (_, hkv, sk, _) = k.dims4()?;
    check::shape(OP, "k", k, &[b, hkv, sk, d])?;
    if hkv == 0 || !hq.is_multiple_of(hkv) {
        let expected = format!("a divisor of the {hq} query heads");
        return Err(KernelError::Value { op: OP, what: "number of key heads", found: hkv.to_string(), expected }.into());
    }
    if mask.causal && sq > sk {
        let expected = format!("at most the {sk} keys under a causal mask");
        return Err(KernelError::Value { op: OP, what: "number of queries", found: sq.to_string(), expected }.into());
    }
    if let Some(keep) = mask.key_keep {
        if keep.dtype() != DType::U8 {
            return Err(KernelError::DType { op: OP, what: "key_keep", found: keep.dtype(), expected: "u8" }.into());
        }
        check::same_device(OP, "key_keep", keep, q)?;
        check::shape(OP, "key_keep", keep, &[b, sk])?;
    }
    if !scale.is_finite() {
        return Err(KernelError::Value { op: OP, what: "scale", found: scale.to_string(), expected: "a finite number".to_string() }.into());
    }
    softcap.map_or(Ok(()), |cap| check::positive(OP, "softcap", cap))
}

/// softmax(scale · q·kᵀ, soft-capped, over the visible keys) · v.
///
/// q [b, hq, sq, d], k [b, hkv, sk, d], v [b, hkv, sk, dv] → [b, hq, sq, dv]; hkv divides hq, and query head i reads key head
/// i / (hq / hkv). `softcap` c turns a score s into c·tanh(s / c). A query that sees no key gives zeros and passes no gradient.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    check(q, k, mask, scale, softcap)?;
    check::like(OP, "v", v, q)?;
    let (b, hkv, sk, _) = k.dims4()?;
    let dv = check::last_dim(OP, "v", v)?;
    check::shape(OP, "v", v, &[b, hkv, sk, dv])?;
    let (_, hq, sq, _) = q.dims4()?;
    if b * hq * sq * sk * dv == 0 {
        return Tensor::zeros((b, hq, sq, dv), q.dtype(), q.device());
    }
    let work = plain::working_dtype(q.dtype());
    plain::attention(&q.to_dtype(work)?, &k.to_dtype(work)?, &v.to_dtype(work)?, mask, scale, softcap)?.to_dtype(q.dtype())
}

/// The probabilities that [`attention`] multiplies with v, materialised: q [b, hq, sq, d], k [b, hkv, sk, d] → [b, hq, sq, sk].
/// For criteria that read attention maps; `attention` itself never stores them.
pub fn attention_probs(q: &Tensor, k: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    check(q, k, mask, scale, softcap)?;
    let (b, hq, sq, _) = q.dims4()?;
    let sk = k.dim(2)?;
    if b * hq * sq * sk == 0 {
        return Tensor::zeros((b, hq, sq, sk), q.dtype(), q.device());
    }
    let work = plain::working_dtype(q.dtype());
    plain::attention_probs(&q.to_dtype(work)?, &k.to_dtype(work)?, mask, scale, softcap)?.to_dtype(q.dtype())
}
