//! From hidden states to outputs.
use candle_core::Tensor;

use super::Context;
use crate::error::Result;
use crate::transformer::Transformer;

pub(crate) fn outputs(_: &Transformer, x: &Tensor, _: &Context) -> Result<Tensor> {
    Ok(x.clone())
}
