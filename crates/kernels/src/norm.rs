use crate::{check, plain};
use candle_core::{Result, Tensor};

/// Layer normalisation (Ba et al. 2016): (x − mean) / √(var + eps) · w + b over the last dimension, var biased.
/// x [.., d], w [d], b [d] → [.., d].
pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    check::float(OP, "x", x)?;
    let d = check::last_dim(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    check::shape(OP, "weight", w, &[d])?;
    if let Some(b) = b {
        check::like(OP, "bias", b, x)?;
        check::shape(OP, "bias", b, &[d])?;
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let work = plain::working_dtype(x.dtype());
    let b = b.map(|b| b.to_dtype(work)).transpose()?;
    plain::layer_norm(&x.to_dtype(work)?, &w.to_dtype(work)?, b.as_ref(), eps)?.to_dtype(x.dtype())
}

/// Root mean square normalisation (Zhang & Sennrich 2019, eq. 4): x / √(mean x² + eps) · w over the last dimension;
/// with `offset_one` the factor is 1 + w. x [.., d], w [d] → [.., d].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64, offset_one: bool) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    check::float(OP, "x", x)?;
    let d = check::last_dim(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    check::shape(OP, "weight", w, &[d])?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let work = plain::working_dtype(x.dtype());
    plain::rms_norm(&x.to_dtype(work)?, &w.to_dtype(work)?, eps, offset_one)?.to_dtype(x.dtype())
}
