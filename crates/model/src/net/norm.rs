//! Norms over the last dimension.

use candle_core::Tensor;
use prunectl_kernels as kernels;

use crate::blueprint::{Norm, NormKind};
use crate::error::Result;
use crate::params::Params;

/// The norm of that stem; the shape stays.
pub(crate) fn norm(params: &Params, stem: &str, norm: Norm, x: &Tensor) -> Result<Tensor> {
    let weight = params.require(&format!("{stem}.weight"))?;
    Ok(match norm.kind {
        NormKind::Layer => kernels::layer_norm(x, weight, params.get(&format!("{stem}.bias")), norm.eps)?,
        NormKind::Rms => kernels::rms_norm(x, weight, norm.eps, false)?,
        NormKind::RmsOffsetOne => kernels::rms_norm(x, weight, norm.eps, true)?,
    })
}
