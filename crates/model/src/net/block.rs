//! One block: where norms, sublayers and residuals meet.

use candle_core::Tensor;
use prunectl_kernels as kernels;

use super::{Context, Shortcuts, attention, mlp, norm, spread_scalar_gate};
use crate::blueprint::Layout;
use crate::error::Result;
use crate::gates::{LayerGates, Point, Tap, show};
use crate::transformer::Transformer;

/// `[batch, seq, hidden]` to the same, or to `[batch, 1, hidden]` where one state of each example is wanted.
pub(crate) fn block(
    model: &Transformer,
    layer: usize,
    x: &Tensor,
    context: &Context,
    gates: Option<&LayerGates>,
    shortcuts: Shortcuts<'_>,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let read = model.layer_in_memory(layer)?;
    let model = read.as_ref().unwrap_or(model);
    if let Some(blocks) = &model.blockwise {
        // In the outer graph: nobody will say when its parameters' gradients are complete.
        blocks.opened(layer);
    }
    let dims = model.layer_dims(layer)?;
    let blueprint = &model.blueprint;
    show(tap, layer, Point::BlockInput, x)?;
    // The states that are wanted; attention reads all of them.
    let own = |x: &Tensor| shortcuts.one.map_or_else(|| Ok(x.clone()), |one| one.pick(x));
    let own_context = shortcuts.one.map_or(context, |one| &one.context);
    if model.blocked.layers.contains(&layer) {
        let y = own(x)?;
        show(tap, layer, Point::BlockOutput, &y)?;
        return Ok(y);
    }
    let normed = |name: &str, x: &Tensor| -> Result<Tensor> {
        context.gate_hidden(norm::of_stream(model, &format!("layers.{layer}.{name}"), blueprint.norm, x)?)
    };
    // What only reads a bias needs no norm before it.
    let input = |name: &str, x: &Tensor, present: bool| if present { normed(name, x) } else { Ok(x.clone()) };
    let gated = |what: &str, y: Tensor, gate: Option<&Tensor>| -> Result<Tensor> {
        let y = context.gate_hidden(y)?;
        match gate {
            None => Ok(y),
            Some(gate) => Ok(y.broadcast_mul(&spread_scalar_gate(what, gate, context.batch, model.dtype)?)?),
        }
    };
    let attend = |x: &Tensor, after: Option<&str>, tap: &mut dyn Tap| -> Result<Tensor> {
        let mut y = match shortcuts.attention {
            Some(y) => own(y)?,
            None => attention::attention(model, layer, x, (context, shortcuts), gates, tap)?,
        };
        if let Some(name) = after {
            y = normed(name, &y)?;
        }
        gated("attention", y, gates.and_then(|g| g.attention.as_ref()))
    };
    let feed = |x: &Tensor, after: Option<&str>, tap: &mut dyn Tap| -> Result<Tensor> {
        let mut y = match shortcuts.mlp {
            Some(y) => own(y)?,
            None => mlp::mlp(model, layer, x, own_context, gates, tap)?,
        };
        if let Some(name) = after {
            y = normed(name, &y)?;
        }
        gated("the MLP", y, gates.and_then(|g| g.mlp.as_ref()))
    };

    let mut y = own(x)?;
    match blueprint.layout {
        Layout::Pre | Layout::Sandwich => {
            let after = |name| (blueprint.layout == Layout::Sandwich).then_some(name);
            if dims.has_attention() {
                let present = dims.q_heads > 0 && shortcuts.attention.is_none();
                y = kernels::add(&y, &attend(&input("norm1", x, present)?, after("post_norm1"), tap)?)?;
            }
            if dims.has_mlp() {
                y = kernels::add(&y, &feed(&input("norm2", &y, dims.ffn > 0)?, after("post_norm2"), tap)?)?;
            }
        }
        Layout::Post => {
            if dims.has_attention() {
                y = kernels::add(&y, &attend(x, None, tap)?)?;
            }
            y = normed("norm1", &y)?;
            if dims.has_mlp() {
                y = kernels::add(&y, &feed(&y, None, tap)?)?;
            }
            y = normed("norm2", &y)?;
        }
        Layout::Parallel | Layout::ParallelOneNorm => {
            let (first, second) = (dims.q_heads > 0, dims.ffn > 0);
            let one = blueprint.layout == Layout::ParallelOneNorm;
            let attention_input = input("norm1", x, first || (one && second))?;
            let mlp_input = if one { own(&attention_input)? } else { input("norm2", &own(x)?, second)? };
            if dims.has_attention() {
                y = kernels::add(&y, &attend(&attention_input, None, tap)?)?;
            }
            if dims.has_mlp() {
                y = kernels::add(&y, &feed(&mlp_input, None, tap)?)?;
            }
        }
    }
    if let Some(gate) = gates.and_then(|g| g.layer.as_ref()) {
        let gate = spread_scalar_gate("the layer", gate, context.batch, model.dtype)?;
        let x = own(x)?;
        y = (&x + (y - &x)?.broadcast_mul(&gate)?)?;
    }
    show(tap, layer, Point::BlockOutput, &y)?;
    Ok(y)
}
