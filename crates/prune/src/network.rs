//! What criteria ask of a network where a formula in weights, gradients and gates is all that they are: its parameters, a loss to
//! differentiate, a gate on every unit. A [`Transformer`] is one. So are the perceptrons and 1×1 convolutions that authors published
//! numbers for: tests hand those to the very code that scores transformers.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor, Var};
use prunectl_model::{Batch, Gates, Head, LayerDims, LayerGates, LossOut, Params, Slice, Transformer};
use prunectl_recipe::catalogue::SiteKind;

use crate::decision::{Decision, Removed};
use crate::error::Result;
use crate::site::Key;
use crate::surgery;

/// A network that can be differentiated.
pub trait Network: Send + Sync {
    /// Its parameters.
    fn params(&self) -> &Params;
    /// The same network with other parameters; they may be variables.
    fn with(&self, params: Params) -> Box<dyn Network>;
    /// The same network, computing in f64.
    fn wide(&self) -> Result<Box<dyn Network>>;
    /// The same network with zeros where `decision` removes something, which is then in `removed` too.
    fn masked(&self, removed: &mut Removed, decision: &Decision) -> Result<Box<dyn Network>>;
    /// Units of a site.
    fn count(&self, key: Key) -> Result<usize>;
    /// The coupled slices of a unit.
    fn group(&self, key: Key, unit: usize) -> Result<Vec<Slice>>;
    /// Outputs, in the graph: `[batch, classes]`, or what the head gives.
    fn outputs(&self, batch: &Batch) -> Result<Tensor>;
    /// The loss of outputs.
    fn loss_of(&self, batch: &Batch, outputs: &Tensor) -> Result<LossOut>;
    /// The loss of a batch; no more outputs than it takes are computed.
    fn loss(&self, batch: &Batch) -> Result<LossOut> {
        self.loss_of(batch, &self.outputs(batch)?)
    }
    /// The sum of the outputs where ones are fed in place of data: a scalar in the graph.
    fn flow(&self) -> Result<Tensor>;
    /// `[batch, …]` flattened: the gradient of the sum of an example's outputs by what enters its first layer.
    fn jacobians(&self, batch: &Batch) -> Result<Tensor>;
    /// Gradients of what `total` makes of the batch's loss, by gates of one on the units of `sites`, each example's its own.
    fn gate_gradients(&self, sites: &BTreeSet<Key>, batch: &Batch, by_token: bool, total: Total) -> Result<GateGradients>;
    /// Gates of one unit, next to each other: a KV group has one for each of its heads. Their gradients add up before anything else.
    fn coupled(&self, key: Key) -> Result<usize>;
    /// Whether the loss sees every token of a site, and not one of each example.
    fn every_token(&self, key: Key) -> bool;
    /// Activations of one token that the removal of a unit saves.
    fn activations(&self, key: Key) -> Result<usize>;
}

/// The scalar of a batch's loss that is differentiated.
pub type Total = fn(&LossOut) -> prunectl_model::Result<Tensor>;

/// What [`Network::gate_gradients`] finds.
pub struct GateGradients {
    /// The batch's loss.
    pub loss: LossOut,
    /// `[…, units · coupled]` of each site, the examples (or tokens) in front; sites that the loss does not depend on are left out.
    pub sites: BTreeMap<Key, Tensor>,
}

/// Positions that are fed to find the flow. Each carries the same, so more of them only scale it.
const FLOW_TOKENS: usize = 8;

/// The gates of one layer as variables.
struct Handles {
    heads: Option<Var>,
    neurons: Option<Var>,
    experts: Option<Var>,
    attention: Option<Var>,
    mlp: Option<Var>,
    layer: Option<Var>,
}

impl Handles {
    fn new(model: &Transformer, sites: &BTreeSet<Key>, batch: &Batch, by_token: bool, layer: usize) -> Result<Self> {
        let (b, s) = batch.size()?;
        let d = model.layer_dims(layer)?;
        let wants = |kind: SiteKind| sites.contains(&Key::of(kind, layer));
        let ones = |shape: &[usize]| Var::ones(shape, model.dtype(), model.device());
        let make = |wanted: bool, shape: &[usize]| wanted.then(|| ones(shape)).transpose();
        let heads: &[usize] = if by_token { &[b, s, d.q_heads] } else { &[b, d.q_heads] };
        let neurons: &[usize] = if d.experts > 0 { &[b, d.experts, d.ffn] } else { &[b, d.ffn] };
        Ok(Self {
            heads: make(wants(SiteKind::Heads) || wants(SiteKind::KvGroups), heads)?,
            neurons: make(wants(SiteKind::Neurons), neurons)?,
            experts: make(wants(SiteKind::Experts), &[d.experts])?,
            attention: make(wants(SiteKind::Attention), &[b])?,
            mlp: make(wants(SiteKind::Mlp), &[b])?,
            layer: make(wants(SiteKind::Layers), &[b])?,
        })
    }

    fn gates(&self) -> LayerGates {
        let tensor = |v: &Option<Var>| v.as_ref().map(|v| v.as_tensor().clone());
        LayerGates {
            heads: tensor(&self.heads),
            neurons: tensor(&self.neurons),
            potentials: None,
            experts: tensor(&self.experts),
            attention: tensor(&self.attention),
            mlp: tensor(&self.mlp),
            layer: tensor(&self.layer),
        }
    }

    fn of(&self, kind: SiteKind) -> Option<&Var> {
        match kind {
            SiteKind::Heads | SiteKind::KvGroups => self.heads.as_ref(),
            SiteKind::Neurons => self.neurons.as_ref(),
            SiteKind::Experts => self.experts.as_ref(),
            SiteKind::Attention => self.attention.as_ref(),
            SiteKind::Mlp => self.mlp.as_ref(),
            SiteKind::Layers => self.layer.as_ref(),
            SiteKind::Hidden | SiteKind::Weights => None,
        }
    }
}

impl Network for Transformer {
    fn params(&self) -> &Params {
        self.params()
    }

    fn with(&self, params: Params) -> Box<dyn Network> {
        let mut model = self.clone();
        *model.params_mut() = params;
        Box::new(model)
    }

    fn wide(&self) -> Result<Box<dyn Network>> {
        Ok(Box::new(self.to_dtype(DType::F64)?))
    }

    fn masked(&self, removed: &mut Removed, decision: &Decision) -> Result<Box<dyn Network>> {
        let mut model = self.clone();
        surgery::mask(&mut model, removed, decision)?;
        Ok(Box::new(model))
    }

    fn count(&self, key: Key) -> Result<usize> {
        crate::units::count(self, key)
    }

    fn group(&self, key: Key, unit: usize) -> Result<Vec<Slice>> {
        crate::units::group(self, key, unit)
    }

    fn outputs(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.forward(batch, &Gates::default(), &mut ())?)
    }

    fn loss_of(&self, batch: &Batch, outputs: &Tensor) -> Result<LossOut> {
        Ok(Self::loss(self, batch, outputs)?)
    }

    fn loss(&self, batch: &Batch) -> Result<LossOut> {
        Ok(self.forward_loss(batch, &Gates::default(), &mut ())?)
    }

    fn flow(&self) -> Result<Tensor> {
        let (x, context) = self.embed(&Batch::new(Tensor::zeros((1, FLOW_TOKENS), DType::U32, self.device())?))?;
        let mut x = x.ones_like()?.detach();
        for layer in 0..self.n_layers() {
            x = self.block(layer, &x, &context, None, &mut ())?;
        }
        Ok(self.finish(&x, &context, &mut ())?.sum_all()?)
    }

    fn jacobians(&self, batch: &Batch) -> Result<Tensor> {
        let (x, context) = self.embed(batch)?;
        let start = Var::from_tensor(&x.detach())?;
        let mut x = start.as_tensor().clone();
        for layer in 0..self.n_layers() {
            x = self.block(layer, &x, &context, None, &mut ())?;
        }
        let outputs = self.finish(&x, &context, &mut ())?;
        // What is computed at padding is nobody's output.
        let each_token = outputs.rank() == 3 && !matches!(self.blueprint().head, Head::Encode { .. });
        let outputs = match &batch.keep {
            Some(keep) if each_token => outputs.broadcast_mul(&keep.to_dtype(self.dtype())?.unsqueeze(2)?)?,
            _ => outputs,
        };
        let grads = outputs.sum_all()?.backward()?;
        let g = match grads.get(start.as_tensor()) {
            Some(g) => g.detach(),
            None => start.as_tensor().zeros_like()?.detach(),
        };
        Ok(g.flatten_from(1)?)
    }

    fn gate_gradients(&self, sites: &BTreeSet<Key>, batch: &Batch, by_token: bool, total: Total) -> Result<GateGradients> {
        let layers = 0..self.n_layers();
        // Layers are one site of the whole model.
        let everywhere = sites.iter().any(|k| k.kind == SiteKind::Layers);
        let mut handles = Vec::with_capacity(self.n_layers());
        for layer in layers.clone() {
            handles.push(Handles::new(self, sites, batch, by_token, layer)?);
        }
        let gates = Gates { layers: handles.iter().map(Handles::gates).collect(), hidden: None };
        let loss = self.forward_loss(batch, &gates, &mut ())?;
        let mut out = GateGradients { loss, sites: BTreeMap::new() };
        if out.loss.count() == 0 {
            return Ok(out);
        }
        let grads = total(&out.loss)?.backward()?;
        let of = |kind: SiteKind, layer: usize| handles.get(layer).and_then(|h| h.of(kind)).and_then(|v| grads.get(v.as_tensor()));
        for key in sites {
            if let Some(g) = key.layer.and_then(|layer| of(key.kind, layer)) {
                out.sites.insert(*key, g.clone());
            }
        }
        if everywhere {
            let (b, _) = batch.size()?;
            let none = Tensor::zeros(b, self.dtype(), self.device())?;
            let columns: Vec<&Tensor> = layers.map(|layer| of(SiteKind::Layers, layer).unwrap_or(&none)).collect();
            out.sites.insert(Key::of(SiteKind::Layers, 0), Tensor::stack(&columns, 1)?);
        }
        Ok(out)
    }

    fn coupled(&self, key: Key) -> Result<usize> {
        match (key.kind, key.layer) {
            (SiteKind::KvGroups, Some(layer)) => Ok(self.layer_dims(layer)?.group_size().max(1)),
            _ => Ok(1),
        }
    }

    fn every_token(&self, key: Key) -> bool {
        let last = key.layer.is_some_and(|l| l + 1 == self.n_layers());
        !last || matches!(self.blueprint().head, Head::Tokens { .. })
    }

    fn activations(&self, key: Key) -> Result<usize> {
        Ok(activations(key.kind, self.layer_dims(key.layer.unwrap_or_default())?, self.blueprint().mlp.gated))
    }
}

/// Activations of one token that the removal of a head, a KV group or a neuron saves.
fn activations(kind: SiteKind, d: &LayerDims, gated: bool) -> usize {
    let r = d.group_size();
    match kind {
        SiteKind::Neurons => 1 + usize::from(gated),
        SiteKind::KvGroups => (2 + r) * d.head_dim,
        // A query head with keys and values of its own takes them along.
        _ if r == 1 => 3 * d.head_dim,
        _ => d.head_dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads of 4 entries, two a group: a group saves its keys, values and two heads' outputs; a gated neuron two activations.
    #[test]
    fn activations_by_hand() {
        let d = LayerDims { q_heads: 4, kv_heads: 2, head_dim: 4, ffn: 6, ..LayerDims::default() };
        assert_eq!(activations(SiteKind::KvGroups, &d, true), 16);
        assert_eq!(activations(SiteKind::Heads, &d, true), 4);
        assert_eq!((activations(SiteKind::Neurons, &d, true), activations(SiteKind::Neurons, &d, false)), (2, 1));
        let alone = LayerDims { kv_heads: 4, ..d };
        assert_eq!(activations(SiteKind::Heads, &alone, true), 12);
    }
}
