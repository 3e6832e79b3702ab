//! MLPs: plain or gated, dense or a mixture of routed experts (Shazeer et al., 2017; top-k of a softmax, Jiang et al., 2024, eq. 1).

use candle_core::{D, DType, Tensor};
use prunectl_kernels as kernels;

use super::{Context, linear, spread_gate};
use crate::adapter::has_adapter;
use crate::blueprint::Router;
use crate::error::{ModelError, Result};
use crate::gates::{LayerGates, Point, Tap, show};
use crate::int8::Rounded;
use crate::transformer::Transformer;

/// x `[b, s, hidden]`, already normed where the layout norms first, to what the MLP adds to the residual stream.
pub(crate) fn mlp(
    model: &Transformer,
    layer: usize,
    x: &Tensor,
    context: &Context,
    gates: Option<&LayerGates>,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let dims = model.layer_dims(layer)?;
    let stem = format!("layers.{layer}.mlp");
    if dims.ffn == 0 {
        return Ok(model.params.require(&format!("{stem}.down.bias"))?.broadcast_as(x.shape())?);
    }
    show(tap, layer, Point::MlpInput, x)?;
    let out = if dims.experts > 0 {
        mixture(model, layer, x, context, gates, tap)?
    } else {
        let gate = gates.and_then(|g| g.neurons.as_ref());
        let closed = closed(model, &stem).filter(|_| gate.is_none() && !tap.wants(layer, Point::Intermediate));
        let x = &model.int8_input(x, context.keep.as_ref())?;
        let mut potential = |mut p: Tensor| -> Result<Tensor> {
            if let Some(more) = gates.and_then(|g| g.potentials.as_ref()) {
                p = p.add(more)?;
            }
            show(tap, layer, Point::Potential, &p)?;
            Ok(p)
        };
        match closed {
            Some((kernel, down)) => {
                let up = model.times(&format!("{stem}.up"), x)?;
                kernels::gated_linear(kernel, &potential(model.times(&format!("{stem}.gate"), x)?)?, &up, down)?
            }
            None => {
                let mut inner = intermediate(model, &stem, x, potential)?; // [b, s, ffn]
                if let Some(gate) = gate {
                    inner = kernels::gate(&inner, &spread_gate("neurons", gate, context.batch, &[dims.ffn], 2, model.dtype)?)?;
                }
                show(tap, layer, Point::Intermediate, &inner)?;
                if tap.ends_at(layer, Point::Intermediate) {
                    return Ok(x.x.clone());
                }
                model.times(&format!("{stem}.down"), &model.int8_input(&inner, context.keep.as_ref())?)?
            }
        }
    };
    show(tap, layer, Point::MlpOutput, &out)?;
    Ok(out)
}

/// The activation function and the down projection of a gated MLP that multiplies nothing but its weight.
fn closed<'m>(model: &'m Transformer, stem: &str) -> Option<(kernels::Activation, &'m Tensor)> {
    let spec = &model.blueprint.mlp;
    let down = format!("{stem}.down");
    let plain = spec.gated && model.int8.is_none() && !model.params.has(&format!("{down}.bias")) && !has_adapter(&model.params, &down);
    Some((spec.activation.kernel()?, model.params.get(&format!("{down}.weight")).filter(|_| plain)?))
}

/// The input of the down projection, `[.., hidden]` to `[.., ffn]`. What the activation function reads goes through `potential` first.
fn intermediate(model: &Transformer, stem: &str, x: &Rounded, potential: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let spec = &model.blueprint.mlp;
    let up = model.times(&format!("{stem}.up"), x)?;
    if spec.gated {
        spec.activation.gated(&potential(model.times(&format!("{stem}.gate"), x)?)?, &up)
    } else {
        spec.activation.apply(&potential(up)?)
    }
}

fn mixture(
    model: &Transformer,
    layer: usize,
    x: &Tensor,
    context: &Context,
    gates: Option<&LayerGates>,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let (spec, params) = (&model.blueprint.mlp, &model.params);
    let dims = model.layer_dims(layer)?;
    let (b, s) = context.size();
    let hidden = x.dim(D::Minus1)?;
    let stem = format!("layers.{layer}.mlp");
    let Some(router) = &spec.router else {
        return Err(ModelError::Mismatch {
            what: format!("router of layer {layer}"),
            found: "none".into(),
            expected: format!("one for {} experts", dims.experts),
        });
    };
    let x = x.reshape((b * s, hidden))?;
    let expert_gates = model.open_experts(layer, gates)?;
    let expert_gates = expert_gates.as_ref();
    let logits = linear(params, &format!("{stem}.router"), &x)?; // [n, experts]
    show(tap, layer, Point::RouterLogits, &logits.reshape((b, s, dims.experts))?)?;
    let (weights, rows) = route(router, &logits, expert_gates)?;
    show(tap, layer, Point::RouterWeights, &weights.reshape((b, s, dims.experts))?)?;

    let neuron_gates = match gates.and_then(|g| g.neurons.as_ref()) {
        None => None,
        Some(gate) => Some(spread_gate("neurons", gate, b, &[dims.experts, dims.ffn], 3, model.dtype)?),
    };
    let mut outputs = Vec::new();
    // Where in the concatenated outputs each token's contributions stand, lowest expert first.
    let mut places: Vec<Vec<u32>> = vec![Vec::new(); b * s];
    let mut placed = 0_u32;
    for (expert, rows) in rows.iter().enumerate() {
        if rows.is_empty() {
            continue;
        }
        for row in rows {
            if let Some(list) = places.get_mut(*row as usize) {
                list.push(placed);
            }
            placed += 1;
        }
        let index = Tensor::new(rows.as_slice(), x.device())?;
        show(tap, layer, Point::ExpertRows(expert), &index)?;
        let prefix = format!("{stem}.experts.{expert}");
        let own = model.int8_input(&x.index_select(&index, 0)?, None)?;
        let mut inner = intermediate(model, &prefix, &own, Ok)?; // [rows, ffn]
        if let Some(gate) = &neuron_gates {
            let gate = gate.narrow(1, expert, 1)?.squeeze(1)?; // [1 or b, ffn]
            inner = if gate.dim(0)? == 1 {
                inner.broadcast_mul(&gate)?
            } else {
                let examples: Vec<u32> = rows.iter().map(|row| row / s as u32).collect();
                inner.mul(&gate.contiguous()?.index_select(&Tensor::new(examples, x.device())?, 0)?)?
            };
        }
        show(tap, layer, Point::ExpertIntermediate(expert), &inner)?;
        let out = model.times(&format!("{prefix}.down"), &model.int8_input(&inner, None)?)?;
        show(tap, layer, Point::ExpertOutput(expert), &out)?;
        let mut weight = weights.index_select(&index, 0)?.narrow(1, expert, 1)?; // [rows, 1]
        if let Some(gate) = expert_gates {
            weight = weight.broadcast_mul(&gate.to_dtype(model.dtype)?.narrow(0, expert, 1)?)?;
        }
        outputs.push(out.broadcast_mul(&weight)?);
    }
    let chosen = places.first().map_or(0, Vec::len);
    let gather = Tensor::from_vec(places.concat(), b * s * chosen, x.device())?;
    let gathered = Tensor::cat(&outputs, 0)?.index_select(&gather, 0)?; // [n · chosen, hidden]
    Ok(gathered.reshape((b * s, chosen, hidden))?.sum(1)?.reshape((b, s, hidden))?)
}

/// Each expert's weight for each token `[n, experts]`, 0 where it isn't chosen, and the tokens of each expert in ascending order.
fn route(router: &Router, logits: &Tensor, gates: Option<&Tensor>) -> Result<(Tensor, Vec<Vec<u32>>)> {
    let (n, experts) = logits.dims2()?;
    let open: Vec<bool> = match gates {
        None => vec![true; experts],
        Some(gate) if gate.dims() == [experts] => gate.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().map(|g| *g != 0.0).collect(),
        Some(gate) => {
            return Err(ModelError::Mismatch {
                what: "shape of the gates on experts".into(),
                found: format!("{:?}", gate.dims()),
                expected: format!("[{experts}]"),
            });
        }
    };
    let available = open.iter().filter(|o| **o).count();
    if available == 0 {
        return Err(ModelError::Mismatch {
            what: "open experts".into(),
            found: "none".into(),
            expected: "at least one; gate the whole MLP to switch all of them off".into(),
        });
    }
    let device = logits.device();
    let logits = if available == experts {
        logits.clone()
    } else {
        let shut: Vec<f64> = open.iter().map(|o| if *o { 0.0 } else { f64::NEG_INFINITY }).collect();
        logits.broadcast_add(&Tensor::new(shut, &candle_core::Device::Cpu)?.to_dtype(logits.dtype())?.to_device(device)?)?
    };
    let probs = kernels::softmax_last_dim(&logits)?;
    let host = probs.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let top_k = router.top_k.min(available);
    let mut rows = vec![Vec::new(); experts];
    let mut chosen = vec![0.0_f64; n * experts];
    for (token, (p, marks)) in host.iter().zip(chosen.chunks_mut(experts)).enumerate() {
        let mut order: Vec<usize> = (0..experts).filter(|e| open.get(*e) == Some(&true)).collect();
        // Stable: of equal experts the lower index is taken.
        order.sort_by(|a, b| p.get(*b).partial_cmp(&p.get(*a)).unwrap_or(std::cmp::Ordering::Equal));
        for e in order.into_iter().take(top_k) {
            if let (Some(mark), Some(list)) = (marks.get_mut(e), rows.get_mut(e)) {
                *mark = 1.0;
                list.push(token as u32);
            }
        }
    }
    let chosen = Tensor::from_vec(chosen, (n, experts), &candle_core::Device::Cpu)?.to_dtype(probs.dtype())?.to_device(device)?;
    let weights = probs.mul(&chosen)?;
    let weights = if router.renormalise { weights.broadcast_div(&weights.sum_keepdim(1)?)? } else { weights };
    Ok((weights, rows))
}
