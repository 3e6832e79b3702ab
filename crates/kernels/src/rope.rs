//! Rotary position embedding (Su et al. 2021, eq. 34): pairs of a head's components are turned by an angle that grows with the position.

use crate::error::KernelError;
use crate::{check, plain};
use candle_core::{D, Result, Tensor};

const OP: &str = "rope";

/// Which components form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Component i with i + r/2 (GPT-NeoX, Llama in transformers' layout).
    Half,
    /// Component 2i with 2i + 1 (GPT-J, the paper).
    Interleaved,
}

/// x [b, h, s, d], cos and sin [b|1, s, r/2] → [b, h, s, d]; the first `rotary_dim` = r components turn, the rest pass through.
/// Differentiable in `x` only: the tables are constants.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle, rotary_dim: usize) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    let (b, _, s, d) = x.dims4()?;
    if !rotary_dim.is_multiple_of(2) || rotary_dim > d {
        let expected = format!("an even number up to the head size {d}");
        return Err(KernelError::Value { op: OP, what: "rotary_dim", found: rotary_dim.to_string(), expected }.into());
    }
    for (what, table) in [("cos", cos), ("sin", sin)] {
        check::float(OP, what, table)?;
        check::same_device(OP, what, table, x)?;
        let rows = if table.rank() == 3 && table.dim(0)? == 1 { 1 } else { b };
        check::shape(OP, what, table, &[rows, s, rotary_dim / 2])?;
    }
    check::shape(OP, "sin", sin, cos.dims())?;
    if x.elem_count() == 0 || rotary_dim == 0 {
        return Ok(x.clone());
    }
    debug_assert_eq!(x.dim(D::Minus1)?, d);
    let work = plain::working_dtype(x.dtype());
    plain::rope(&x.to_dtype(work)?, &cos.to_dtype(work)?.detach(), &sin.to_dtype(work)?.detach(), style, rotary_dim)?.to_dtype(x.dtype())
}
