//! Attention with grouped key/value heads, whose counts differ between layers.

use std::sync::PoisonError;

use candle_core::Tensor;
use prunectl_kernels as kernels;

use super::{Context, Shortcuts, norm, spread_gate};
use crate::blueprint::{Norm, NormKind, Pairs};
use crate::error::{ModelError, Result};
use crate::gates::{LayerGates, Point, Tap, show};
use crate::int8::Rounded;
use crate::transformer::Transformer;

/// x `[b, s, hidden]`, already normed where the layout norms first, to what attention adds to the residual stream: to all of it, or to
/// one state of each example.
pub(crate) fn attention(
    model: &Transformer,
    layer: usize,
    x: &Tensor,
    (context, Shortcuts { one, cache, .. }): (&Context, Shortcuts<'_>),
    gates: Option<&LayerGates>,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let (blueprint, params) = (&model.blueprint, &model.params);
    let dims = model.layer_dims(layer)?;
    let (b, s) = context.size();
    let picked = one.map(|one| one.pick(x)).transpose()?;
    let sq = if picked.is_some() { 1 } else { s };
    let stem = format!("layers.{layer}.attention");
    if dims.q_heads == 0 {
        let bias = params.require(&format!("{stem}.o.bias"))?;
        return Ok(bias.broadcast_as(picked.as_ref().unwrap_or(x).shape())?);
    }
    let spec = blueprint.layers.get(layer).ok_or(ModelError::NoSuchLayer { layer, layers: blueprint.layers.len() })?;
    show(tap, layer, Point::AttentionInput, x)?;
    // A model of int8 never picks: an outlier column belongs to the whole sequence.
    let rounded = model.int8_input(x, context.keep.as_ref())?;
    let picked = picked.map(Rounded::plain);
    let (x, asks) = (&rounded, picked.as_ref().unwrap_or(&rounded));

    let heads = |name: &str, x: &Rounded, n: usize| -> Result<Tensor> {
        let projected = model.times(&format!("{stem}.{name}"), x)?.reshape((b, x.x.dim(1)?, n, dims.head_dim))?;
        let normed = if blueprint.attention.qk_norm && name != "v" {
            // A norm over the head has no use for a mean: families that have one use the RMS kind of the model.
            norm::norm(params, &format!("{stem}.{name}_norm"), head_norm(blueprint.norm), &projected)?
        } else {
            projected
        };
        Ok(normed.transpose(1, 2)?) // [b, n, s, head_dim]
    };
    let (mut q, mut k, mut v) = (heads("q", asks, dims.q_heads)?, heads("k", x, dims.kv_heads)?, heads("v", x, dims.kv_heads)?);
    if let Some((rotary, (cos, sin))) = spec.rotary.and_then(|r| blueprint.rotary.get(r).zip(context.rotary.get(r))) {
        let style = match rotary.pairs {
            Pairs::Half => kernels::RopeStyle::Half,
            Pairs::Interleaved => kernels::RopeStyle::Interleaved,
        };
        q = match one {
            None => kernels::rope(&q, cos, sin, style, rotary.dim)?,
            Some(one) => kernels::rope(&q, &one.positions(cos)?, &one.positions(sin)?, style, rotary.dim)?,
        };
        k = kernels::rope(&k, cos, sin, style, rotary.dim)?;
    }
    show(tap, layer, Point::Queries, &q)?;
    show(tap, layer, Point::Keys, &k)?;
    show(tap, layer, Point::Values, &v)?;
    if let Some(cache) = cache {
        (k, v) = cache.lock().unwrap_or_else(PoisonError::into_inner).extend(layer, &k, &v)?; // [b, n, past + s, head_dim]
    }

    // The last real token of a causal model sees every real token.
    let causal = blueprint.attention.causal && one.is_none();
    let mask = kernels::AttnMask { causal, window: spec.window, key_keep: context.keep.as_ref() };
    let cap = blueprint.attention.softcap;
    if tap.wants(layer, Point::AttentionProbs) {
        tap.see(layer, Point::AttentionProbs, &kernels::attention_probs(&q, &k, &mask, spec.scale, cap)?)?;
    }
    let mut seen = kernels::attention(&q, &k, &v, &mask, spec.scale, cap)?.transpose(1, 2)?; // [b, s, heads, head_dim]
    if let Some(gate) = gates.and_then(|g| g.heads.as_ref()) {
        seen = if gate.dims() == [b, s, dims.q_heads] {
            seen.broadcast_mul(&gate.to_dtype(model.dtype)?.unsqueeze(3)?)?
        } else {
            kernels::gate(&seen, &spread_gate("heads", gate, b, &[dims.q_heads], 2, model.dtype)?)?
        };
    }
    show(tap, layer, Point::HeadContext, &seen)?;
    let seen = model.int8_input(&seen.reshape((b, sq, dims.q_width()))?, context.keep.as_ref())?;
    let out = model.times(&format!("{stem}.o"), &seen)?;
    show(tap, layer, Point::AttentionOutput, &out)?;
    Ok(out)
}

fn head_norm(norm: Norm) -> Norm {
    match norm.kind {
        NormKind::Layer => Norm { kind: NormKind::Rms, ..norm },
        _ => norm,
    }
}
