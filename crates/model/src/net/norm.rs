//! Norms over the last dimension.

use candle_core::Tensor;
use prunectl_kernels as kernels;

use crate::blueprint::{Norm, NormKind};
use crate::error::Result;
use crate::params::Params;
use crate::transformer::Transformer;

/// The norm of that stem; the shape stays.
pub(crate) fn norm(params: &Params, stem: &str, norm: Norm, x: &Tensor) -> Result<Tensor> {
    let weight = params.require(&format!("{stem}.weight"))?;
    apply(norm, x, weight, params.get(&format!("{stem}.bias")))
}

fn apply(norm: Norm, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match norm.kind {
        NormKind::Layer => kernels::layer_norm(x, weight, bias, norm.eps)?,
        NormKind::Rms => kernels::rms_norm(x, weight, norm.eps, false)?,
        NormKind::RmsOffsetOne => kernels::rms_norm(x, weight, norm.eps, true)?,
    })
}

/// A norm over the channels of the residual stream: masked channels are not among those whose mean and size it takes, and stay zero, as if
/// they had been taken out.
pub(crate) fn of_stream(model: &Transformer, stem: &str, spec: Norm, x: &Tensor) -> Result<Tensor> {
    let (hidden, masked) = (model.blueprint.hidden, &model.blocked.hidden);
    let last = x.rank().saturating_sub(1);
    if masked.is_empty() || x.dim(last)? != hidden {
        return norm(&model.params, stem, spec, x);
    }
    let kept: Vec<u32> = (0..hidden).filter(|c| !masked.contains(c)).map(|c| c as u32).collect();
    if kept.is_empty() {
        return Ok(x.zeros_like()?);
    }
    // Where each channel is found afterwards; those that are masked, in a column of zeros behind the kept ones.
    let behind = kept.len() as u32;
    let place = |c: usize| kept.binary_search(&(c as u32)).map_or(behind, |place| place as u32);
    let places = Tensor::new((0..hidden).map(place).collect::<Vec<_>>(), x.device())?;
    let kept = Tensor::new(kept, x.device())?;
    let own = |leaf: &str| -> Result<Option<Tensor>> {
        let found = model.params.get(&format!("{stem}.{leaf}"));
        Ok(found.map(|t| t.index_select(&kept, 0)).transpose()?)
    };
    let weight = model.params.require(&format!("{stem}.weight"))?.index_select(&kept, 0)?;
    let y = apply(spec, &x.index_select(&kept, last)?, &weight, own("bias")?.as_ref())?;
    let zeros = y.narrow(last, 0, 1)?.zeros_like()?;
    Ok(Tensor::cat(&[&y, &zeros], last)?.index_select(&places, last)?)
}
