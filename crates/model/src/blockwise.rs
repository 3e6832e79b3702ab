//! Blocks that are differentiated one at a time.
//!
//! To the outer graph a block is one operation. Its own graph ends at its input, and the backward pass goes through it when it reaches that
//! operation, and then drops it: activations leave block by block while the gradients of the weights come. Or it is dropped at once and
//! built anew in the backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), sec. 4, with a segment a block):
//! activations of one block and the inputs of all stand in memory instead of the activations of all, for one more forward pass of the
//! blocks. A block built again computes what it computed before, to the same bits, and so do gradients.
//!
//! The gradient by a block's input goes on through the outer graph; those by the parameters go straight to the pass under way
//! ([`autograd::backward`]), because an operation has no more than three arguments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Shape, Tensor, Var};
use prunectl_kernels::autograd;

use crate::error::Result;
use crate::gates::{LayerGates, Point, Tap, show};
use crate::net::block::block;
use crate::net::{Context, Shortcuts};
use crate::params::layer_prefix;
use crate::transformer::Transformer;

/// What stands in memory of a block between the forward and the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// All that the backward pass reads.
    Activations,
    /// Its input: the rest is computed again.
    Input,
}

/// The blocks of one pass.
#[derive(Debug)]
pub(crate) struct Blocks {
    kept: Kept,
    /// Users of each layer's parameters that were not differentiated yet: a pass may go through the network more than once.
    open: Mutex<BTreeMap<usize, usize>>,
}

impl Blocks {
    /// One more user of the layer's parameters.
    pub(crate) fn opened(&self, layer: usize) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner).entry(layer).or_default() += 1;
    }

    /// Whether that was the last one of the layer.
    fn closed(&self, layer: usize) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.entry(layer).or_default();
        *left = left.saturating_sub(1);
        *left == 0
    }
}

/// The graph of one block.
struct Graph {
    /// Where it ends; not a variable where nothing before the block has one.
    input: Tensor,
    y: Tensor,
}

/// A block as one operation: of its input, and of `y`, which is what it gave.
struct Blockwise {
    model: Transformer,
    layer: usize,
    context: Context,
    gates: Option<LayerGates>,
    blocks: Arc<Blocks>,
    graph: Mutex<Option<Graph>>,
}

impl Blockwise {
    fn build(&self, x: &Tensor) -> Result<Graph> {
        let input = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.clone() };
        let y = block(&self.model, self.layer, &input, &self.context, self.gates.as_ref(), Shortcuts::default(), &mut ())?;
        Ok(Graph { input, y })
    }
}

impl CustomOp2 for Blockwise {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, y: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, y: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, y: &MetalStorage, layout: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner).take();
        let graph = match graph {
            Some(graph) => graph,
            None => self.build(x).map_err(candle_core::Error::wrap)?,
        };
        let variables = || self.model.params.iter().filter(|(_, p)| p.is_variable());
        let input = Some(&graph.input).filter(|input| input.is_variable());
        autograd::within(&graph.y, gradient, variables().map(|(_, p)| p).chain(input))?;
        let dx = autograd::take(&graph.input);
        drop(graph);
        if self.blocks.closed(self.layer) {
            let prefix = layer_prefix(self.layer);
            variables().filter(|(slot, _)| slot.starts_with(&prefix)).try_for_each(|(_, p)| autograd::complete(p))?;
        }
        Ok((dx, None))
    }
}

impl Transformer {
    /// The same network, differentiated block by block: for one pass of [`autograd::backward`], when all variables are among the parameters.
    /// A gradient by a block's own parameters is complete ([`autograd::complete`]) with that block, unless it is still to be differentiated
    /// elsewhere.
    pub fn blockwise(&self, kept: Kept) -> Self {
        Self { blockwise: Some(Arc::new(Blocks { kept, open: Mutex::default() })), ..self.clone() }
    }

    /// A block within a whole pass: on its own where that was asked for, nobody looks inside and its gates are constants.
    pub(crate) fn block_within(
        &self,
        layer: usize,
        x: &Tensor,
        context: &Context,
        gates: Option<&LayerGates>,
        shortcuts: Shortcuts<'_>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let closed = shortcuts.is_empty() && !gates.is_some_and(LayerGates::track_op);
        let alone = self.blockwise.as_ref().filter(|_| closed && !Point::INSIDE.iter().any(|p| tap.wants(layer, *p)));
        let Some(blocks) = alone else { return block(self, layer, x, context, gates, shortcuts, tap) };
        show(tap, layer, Point::BlockInput, x)?;
        let model = Self { blockwise: None, ..self.clone() };
        let (context, gates, blocks) = (context.clone(), gates.cloned(), blocks.clone());
        let own = Blockwise { model, layer, context, gates, blocks, graph: Mutex::default() };
        let graph = own.build(x)?;
        let y = graph.y.detach().contiguous()?;
        if !graph.y.track_op() {
            show(tap, layer, Point::BlockOutput, &y)?;
            return Ok(y);
        }
        own.blocks.opened(layer);
        if own.blocks.kept == Kept::Activations {
            *own.graph.lock().unwrap_or_else(PoisonError::into_inner) = Some(graph);
        }
        // An operation without an argument in the graph would not be differentiated, and the block's parameters would get nothing.
        let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
        let y = x.apply_op2(&y, own)?;
        show(tap, layer, Point::BlockOutput, &y)?;
        Ok(y)
    }
}
