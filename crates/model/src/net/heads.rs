//! From hidden states to outputs.

use candle_core::{DType, Tensor};
use prunectl_kernels as kernels;

use super::{Context, linear, norm, softcap};
use crate::blueprint::{Activation, Head, Norm, NormKind, Pick, Pooling};
use crate::error::{ModelError, Result};
use crate::transformer::Transformer;

/// Outputs of the head: x `[batch, seq, hidden]`, after the final norm.
pub(crate) fn outputs(model: &Transformer, x: &Tensor, context: &Context) -> Result<Tensor> {
    let passing = model.passing();
    let model = passing.as_ref().unwrap_or(model);
    let params = &model.params;
    let narrow = |x: Tensor| if model.blueprint.projects_out() { linear(params, "head.project", &x) } else { Ok(x) };
    match &model.blueprint.head {
        Head::Tokens { .. } => token_logits(model, x),
        Head::Sequence { pick, dense, .. } => {
            let mut one = narrow(match pick {
                Pick::First => first(x)?,
                Pick::Last { .. } => last(x, context)?,
            })?;
            if let Some(activation) = dense {
                one = activation.apply(&linear(params, "pooler", &one)?)?;
            }
            linear(params, "classifier", &one)
        }
        Head::Spans => linear(params, "classifier", x),
        Head::Encode { pooling, .. } => match pooling {
            Pooling::First => narrow(first(x)?),
            Pooling::Last => narrow(last(x, context)?),
            Pooling::Pooler => Activation::Tanh.apply(&linear(params, "pooler", &first(x)?)?),
            Pooling::Mean => narrow(mean(x, context)?),
        },
    }
}

/// Token logits `[.., vocab]` of states `[.., hidden]`.
pub(crate) fn token_logits(model: &Transformer, x: &Tensor) -> Result<Tensor> {
    let passing = model.passing();
    let model = passing.as_ref().unwrap_or(model);
    let params = &model.params;
    let Head::Tokens { tied, transform, project, softcap: cap, .. } = &model.blueprint.head else {
        return Err(ModelError::WrongLabels { head: head_name(&model.blueprint.head).into(), labels: "token labels".into() });
    };
    let mut x = x.clone();
    if *project {
        x = linear(params, "head.project", &x)?;
    }
    if let Some((activation, eps)) = transform {
        x = activation.apply(&linear(params, "head.transform", &x)?)?;
        x = norm::of_stream(model, "head.norm", Norm { kind: NormKind::Layer, eps: *eps }, &x)?;
    }
    let weight = params.require(if *tied { "embeddings.token.weight" } else { "head.weight" })?;
    softcap(kernels::linear(&x, weight, params.get("head.bias"))?, *cap)
}

/// What a head gives, in words.
pub(crate) fn head_name(head: &Head) -> &'static str {
    match head {
        Head::Tokens { .. } => "logits for each token",
        Head::Sequence { regression: true, .. } => "one value for each sequence",
        Head::Sequence { .. } => "one class for each sequence",
        Head::Spans => "answer spans",
        Head::Encode { .. } => "embeddings",
    }
}

/// `[batch, hidden]` of the first token.
fn first(x: &Tensor) -> Result<Tensor> {
    Ok(x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)
}

/// `[batch, hidden]` of the last real token.
fn last(x: &Tensor, context: &Context) -> Result<Tensor> {
    let (b, s, hidden) = x.dims3()?;
    let rows: Vec<u32> = context.last.iter().enumerate().map(|(row, at)| row as u32 * s as u32 + at).collect();
    Ok(x.reshape((b * s, hidden))?.index_select(&Tensor::new(rows, x.device())?, 0)?)
}

/// `[batch, hidden]`: the mean over real tokens.
fn mean(x: &Tensor, context: &Context) -> Result<Tensor> {
    let Some(keep) = &context.keep else { return Ok(x.mean(1)?) };
    let keep = keep.to_dtype(DType::F32)?.to_dtype(x.dtype())?.unsqueeze(2)?; // [b, s, 1]
    let count = keep.sum(1)?.clamp(1.0, f64::from(f32::MAX))?; // [b, 1]
    Ok(x.broadcast_mul(&keep)?.sum(1)?.broadcast_div(&count)?)
}
