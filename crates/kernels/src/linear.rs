//! Affine map y = x·wᵀ + b on a flattened two-dimensional view.

use crate::{check, plain};
use candle_core::{Result, Tensor};

const OP: &str = "linear";

/// x [.., in], w [out, in], b [out] → [.., out]. No gradient is computed for a weight that is neither a variable nor depends on one.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    let (out, features) = w.dims2()?;
    let mut expected = x.dims().to_vec();
    check::last_dim(OP, "x", x)?;
    expected.pop();
    expected.push(features);
    check::shape(OP, "x", x, &expected)?;
    if let Some(b) = b {
        check::like(OP, "bias", b, x)?;
        check::shape(OP, "bias", b, &[out])?;
    }
    plain::linear(x, w, b)
}
