//! The network with its parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::batch::Batch;
use crate::blockwise::Blocks;
use crate::blueprint::{Blueprint, Head, Pick, Pooling, Task};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use crate::family::Family;
use crate::gates::{Gates, LayerGates, Point, Tap, show};
use crate::int8::Int8;
use crate::loss::LossOut;
use crate::net;
use crate::net::{Context, One, Shortcuts};
use crate::params::{Params, layer_prefix};

/// A transformer. `Clone` is shallow: tensors are shared.
#[derive(Debug, Clone)]
pub struct Transformer {
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) dims: Vec<LayerDims>,
    pub(crate) params: Params,
    pub(crate) origin: Arc<Origin>,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    pub(crate) blocked: Blocked,
    /// How it multiplies, where that is by int8.
    pub(crate) int8: Option<Int8>,
    /// Its blocks are differentiated one at a time.
    pub(crate) blockwise: Option<Arc<Blocks>>,
}

/// Units that are masked where zeros in the weights are not enough: a layer of a post-norm network, whose norms change what passes, an
/// expert, which the router would still choose, and a channel of the residual stream, which norms would still count. Compacting takes them
/// out for good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Layers that give their input.
    pub layers: BTreeSet<usize>,
    /// Experts that are never chosen, by layer.
    pub experts: BTreeMap<usize, BTreeSet<usize>>,
    /// Channels that no norm over the residual stream counts.
    pub hidden: BTreeSet<usize>,
}

/// Where a model came from: what is needed to write it back.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `config.json` as it was read.
    pub config: serde_json::Value,
    /// The `model_type` of the config.
    pub model_type: String,
    /// The row of `FAMILIES`.
    pub family: &'static Family,
    /// What it was loaded for.
    pub task: Task,
    /// The type of its tensors on disk.
    pub stored_dtype: DType,
}

impl Transformer {
    /// The mechanisms.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The shape of each layer.
    pub fn dims(&self) -> &[LayerDims] {
        &self.dims
    }

    /// The shape of one layer.
    pub fn layer_dims(&self, layer: usize) -> Result<&LayerDims> {
        self.dims.get(layer).ok_or(ModelError::NoSuchLayer { layer, layers: self.dims.len() })
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.dims.len()
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The same network with other layers: `dims` and every parameter that they imply (removed units written back as zeros, weights
    /// rounded to another dtype). The number of layers stays.
    ///
    /// # Errors
    /// A parameter is missing, superfluous, or has another shape than `Blueprint::slots` says.
    pub fn with_shape(&self, dims: Vec<LayerDims>, params: Params) -> Result<Self> {
        let mismatch = |what: String, found: String, expected: String| ModelError::Mismatch { what, found, expected };
        if dims.len() != self.dims.len() {
            return Err(mismatch("number of layers".into(), dims.len().to_string(), self.dims.len().to_string()));
        }
        let slots = self.blueprint.slots(&dims);
        for slot in &slots {
            let shape = params.shape(&slot.name)?;
            if shape != slot.shape {
                return Err(mismatch(format!("shape of `{}`", slot.name), format!("{shape:?}"), format!("{:?}", slot.shape)));
            }
        }
        if params.tensors().len() != slots.len() {
            return Err(mismatch("number of parameters".into(), params.tensors().len().to_string(), slots.len().to_string()));
        }
        Ok(Self { dims, params, ..self.clone() })
    }

    /// The same network computing in another type.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let mut model = Self { dtype, ..self.clone() };
        model.params = self.params_as(|_, tensor| Ok(tensor.to_dtype(dtype)?))?;
        Ok(model)
    }

    /// The same function with a bias on the output projection of every attention sublayer, of every MLP, or of both: zeros where there was
    /// none. Switches of the family's config that do this may bring zero biases of other projections along, so that the checkpoint stays
    /// one that stock readers understand.
    pub fn with_output_biases(&self, attention: bool, mlp: bool) -> Result<Self> {
        let old = &self.origin;
        let (config, blueprint) = crate::family::with_output_biases(&old.config, old.task, &self.blueprint, attention, mlp);
        let mut model = self.clone();
        for slot in blueprint.slots(&self.dims) {
            if slot.name.ends_with(".bias") && !self.params.has(&slot.name) {
                model.params.set(slot.name, Tensor::zeros(slot.shape, self.dtype, &self.device)?);
            }
        }
        model.blueprint = Arc::new(blueprint);
        model.origin = Arc::new(Origin { config, ..Origin::clone(old) });
        Ok(model)
    }

    /// The same function with an output matrix of its own where it was the table of embeddings: what changes one then leaves the other.
    ///
    /// # Errors
    /// The family's config can't say so.
    pub fn untied(&self) -> Result<Self> {
        if !matches!(self.blueprint.head, Head::Tokens { tied: true, .. }) {
            return Ok(self.clone());
        }
        let old = &self.origin;
        let (config, blueprint) = crate::family::untied(&old.config, old.task, &self.blueprint)?;
        let mut model = self.clone();
        model.params.tensors_mut().share("head.weight", self.params.tensors(), "embeddings.token.weight");
        model.blueprint = Arc::new(blueprint);
        model.origin = Arc::new(Origin { config, ..Origin::clone(old) });
        Ok(model)
    }

    /// Every parameter through `change`, one at a time.
    ///
    /// # Errors
    /// One can't be read or changed.
    pub fn params_as(&self, change: impl Fn(&str, Tensor) -> Result<Tensor>) -> Result<Params> {
        let mut out = self.params.tensors().beside()?;
        for slot in self.params.slots() {
            out.insert(slot.to_owned(), change(slot, self.params.read(slot)?)?);
            out.put_away(slot)?;
        }
        Ok(out.into())
    }

    /// What one layer of a streamed model is computed from, read from the disk where it is not in memory; None for a model in memory.
    pub(crate) fn layer_in_memory(&self, layer: usize) -> Result<Option<Self>> {
        if !self.params.streamed() {
            return Ok(None);
        }
        let params = self.params.tensors().view(&layer_prefix(layer), "layers.")?.into();
        Ok(Some(Self { params, ..self.clone() }))
    }

    /// A copy of a streamed model that keeps what is read of it no longer than it lives itself; None for a model in memory.
    pub(crate) fn passing(&self) -> Option<Self> {
        self.params.streamed().then(|| self.clone())
    }

    /// New random weights in the same shapes, drawn as `init` draws them.
    pub fn reinit(&self, seed: u64) -> Result<Self> {
        let options = crate::checkpoint::LoadOptions {
            dtype: self.dtype,
            device: self.device.clone(),
            task: Some(self.origin.task),
            ..Default::default()
        };
        let params = crate::init::parameters(&self.blueprint, &self.dims, &self.origin.config, seed, &options)?;
        Ok(Self { params, ..self.clone() })
    }

    /// The parameters, to replace some by `Var`s or graph tensors of the same shape.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// Masked layers and experts.
    pub fn blocked(&self) -> &Blocked {
        &self.blocked
    }

    /// Masks layers and experts, or frees them.
    pub fn blocked_mut(&mut self) -> &mut Blocked {
        &mut self.blocked
    }

    /// Gates on the experts of a layer, those of blocked ones zero.
    pub(crate) fn open_experts(&self, layer: usize, gates: Option<&LayerGates>) -> Result<Option<Tensor>> {
        let given = gates.and_then(|g| g.experts.clone());
        let Some(blocked) = self.blocked.experts.get(&layer).filter(|b| !b.is_empty()) else { return Ok(given) };
        let n = self.layer_dims(layer)?.experts;
        let open: Vec<f32> = (0..n).map(|e| if blocked.contains(&e) { 0.0 } else { 1.0 }).collect();
        let open = Tensor::from_vec(open, n, &self.device)?;
        Ok(Some(match given {
            Some(given) => given.to_dtype(DType::F32)?.mul(&open)?.to_dtype(given.dtype())?,
            None => open,
        }))
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type that it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of scalars; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.params.count()
    }

    /// The same encoder with another pooling; an error for other heads, or for the pooler where the file had none.
    pub fn with_pooling(&self, wanted: Pooling) -> Result<Self> {
        let mut blueprint = Blueprint::clone(&self.blueprint);
        match &mut blueprint.head {
            Head::Encode { pooling, pooler } if *pooler || wanted != Pooling::Pooler => *pooling = wanted,
            other => {
                return Err(ModelError::Mismatch {
                    what: format!("head for {wanted:?} pooling"),
                    found: net::heads::head_name(other).into(),
                    expected: "an encoder's (task = \"feature-extraction\"), with a pooler in the file where that is asked for".into(),
                });
            }
        }
        Ok(Self { blueprint: Arc::new(blueprint), ..self.clone() })
    }

    /// From ids to the input of block 0 `[batch, seq, hidden]`, and what all blocks share.
    pub fn embed(&self, batch: &Batch) -> Result<(Tensor, Context)> {
        net::embeddings::embed(self, batch, 0)
    }

    /// One block: `[batch, seq, hidden]` to the same.
    pub fn block(&self, layer: usize, x: &Tensor, context: &Context, gates: Option<&LayerGates>, tap: &mut dyn Tap) -> Result<Tensor> {
        net::block::block(self, layer, x, context, gates, Shortcuts::default(), tap)
    }

    /// The blocks from `first` on, for [`Self::finish`]: `[batch, seq, hidden]` to the same, or to `[batch, 1, hidden]` and its context
    /// where the head reads one state of each example and nobody looks on. `shortcuts` are those of block `first`.
    pub fn blocks(
        &self,
        first: usize,
        x: &Tensor,
        context: &Context,
        gates: &Gates,
        shortcuts: Shortcuts<'_>,
        tap: &mut dyn Tap,
    ) -> Result<(Tensor, Context)> {
        let (mut x, n) = (x.clone(), self.dims.len());
        let one = if first < n { self.one(context, gates, tap)? } else { None };
        for layer in first..n {
            let shortcuts = if layer == first { shortcuts } else { Shortcuts::default() };
            let one = one.as_ref().filter(|_| layer + 1 == n);
            x = self.block_within(layer, &x, context, gates.layer(layer), Shortcuts { one, ..shortcuts }, tap)?;
        }
        Ok((x, one.map_or_else(|| context.clone(), |one| one.context)))
    }

    /// The states of the last block that the head reads, where that is one an example.
    fn one(&self, context: &Context, gates: &Gates, tap: &dyn Tap) -> Result<Option<One>> {
        let last = self.dims.len().saturating_sub(1);
        let by_token = gates.layer(last).is_some_and(|g| g.potentials.is_some() || g.heads.as_ref().is_some_and(|g| g.rank() == 3));
        let windowed = self.blueprint.layers.get(last).is_some_and(|l| l.window.is_some());
        if !tap.is_blind() || by_token || windowed || self.int8.is_some() || context.size().1 < 2 {
            return Ok(None);
        }
        let of_last = match &self.blueprint.head {
            Head::Sequence { pick: Pick::First, .. } | Head::Encode { pooling: Pooling::First | Pooling::Pooler, .. } => false,
            Head::Sequence { pick: Pick::Last { .. }, .. } | Head::Encode { pooling: Pooling::Last, .. } => true,
            _ => return Ok(None),
        };
        if self.blueprint.attention.causal && !of_last {
            return Ok(None);
        }
        if of_last && !context.ends {
            return Ok(None);
        }
        let at = if of_last { context.last.clone() } else { vec![0; context.batch] };
        One::new(context, at, &self.device).map(Some)
    }

    /// From the last block's output to outputs: logits `[batch, seq, vocab]`, `[batch, labels]`, `[batch, seq, 2]` or an embedding `[batch, hidden]`.
    pub fn finish(&self, x: &Tensor, context: &Context, tap: &mut dyn Tap) -> Result<Tensor> {
        let x = self.last_norm(x, context, tap)?;
        net::heads::outputs(self, &x, context)
    }

    /// The final norm, where there is one.
    pub fn last_norm(&self, x: &Tensor, context: &Context, tap: &mut dyn Tap) -> Result<Tensor> {
        if !self.blueprint.final_norm {
            return Ok(x.clone());
        }
        let x = context.gate_hidden(net::norm::of_stream(self, "final_norm", self.blueprint.norm, x)?)?;
        show(tap, self.dims.len(), Point::FinalNorm, &x)?;
        Ok(x)
    }

    /// Token logits `[rows, vocab]` of some rows of the flattened `[batch·seq, hidden]` output of the last block; needs a token head.
    /// Logits of a large vocabulary are most of a pass's memory, so ask only for the rows that are scored.
    pub fn finish_rows(&self, x: &Tensor, context: &Context, rows: &[u32], tap: &mut dyn Tap) -> Result<Tensor> {
        let x = self.last_norm(x, context, tap)?.flatten_to(1)?;
        let x = if rows.is_empty() { x.narrow(0, 0, 0)? } else { x.index_select(&Tensor::new(rows, x.device())?, 0)? };
        net::heads::token_logits(self, &x)
    }

    /// The whole forward pass.
    pub fn forward(&self, batch: &Batch, gates: &Gates, tap: &mut dyn Tap) -> Result<Tensor> {
        let (x, context) = self.embed(batch)?;
        let context = context.with_hidden_gate(gates.hidden.clone());
        let x = context.gate_hidden(x)?;
        let (x, context) = self.blocks(0, &x, &context, gates, Shortcuts::default(), tap)?;
        self.finish(&x, &context, tap)
    }

    /// The output of the last block, before the final norm.
    pub fn hidden(&self, batch: &Batch, gates: &Gates, tap: &mut dyn Tap) -> Result<(Tensor, Context)> {
        let (x, context) = self.embed(batch)?;
        let context = context.with_hidden_gate(gates.hidden.clone());
        let mut x = context.gate_hidden(x)?;
        for layer in 0..self.dims.len() {
            x = self.block_within(layer, &x, &context, gates.layer(layer), Shortcuts::default(), tap)?;
        }
        Ok((x, context))
    }

    /// Forward and loss; only the logits of scored tokens are computed.
    pub fn forward_loss(&self, batch: &Batch, gates: &Gates, tap: &mut dyn Tap) -> Result<LossOut> {
        if !matches!(self.blueprint.head, Head::Tokens { .. }) {
            return self.loss(batch, &self.forward(batch, gates, tap)?);
        }
        let scored = self.scored_tokens(batch)?;
        let (x, context) = self.hidden(batch, gates, tap)?;
        let logits = self.finish_rows(&x, &context, &scored.rows, tap)?;
        self.token_loss(context.size().0, &scored, &logits)
    }
}
