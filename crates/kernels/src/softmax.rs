//! Softmax over the last dimension: yᵢ = exp(xᵢ − max x) / Σⱼ exp(xⱼ − max x).

use crate::{check, plain};
use candle_core::{Result, Tensor};

const OP: &str = "softmax";

/// x [.., n] → probabilities [.., n].
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::last_dim(OP, "x", x)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let y = plain::softmax(&x.to_dtype(plain::working_dtype(x.dtype()))?)?;
    y.to_dtype(x.dtype())
}
