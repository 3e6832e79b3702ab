//! The gated unit of GLU variants (Shazeer 2020): act(gate) · up, element by element.

use crate::activation::Activation;
use crate::{check, plain};
use candle_core::{Result, Tensor};

const OP: &str = "gated";

/// gate and up of one shape → act(gate) · up.
pub fn gated(act: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::float(OP, "gate", gate)?;
    check::like(OP, "up", up, gate)?;
    check::shape(OP, "up", up, gate.dims())?;
    if gate.elem_count() == 0 {
        return Ok(gate.clone());
    }
    let work = plain::working_dtype(gate.dtype());
    (plain::activation(act, &gate.to_dtype(work)?)? * up.to_dtype(work)?)?.to_dtype(gate.dtype())
}
