//! Block-wise recomputation: of each block only its input is kept, and its graph is built anew when the backward pass reaches it.
//!
//! Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), sec. 4, with a segment a block: activations of one block and the inputs
//! of all stand in memory instead of the activations of all, for one more forward pass of the blocks. A block built again computes what it
//! computed before, to the same bits; so do gradients, except where a loss looks at hidden states between blocks: there they are added in
//! another order.
//!
//! A block becomes one operation of the graph. Its backward pass differentiates `Σ y ⊙ ∂L/∂y` through the block built anew; the gradient by
//! the input goes on through the outer graph, those by the parameters are gathered beside it, because an operation has no more than three
//! arguments. So a gradient of a parameter is what the outer graph says plus what [`Felt`] holds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Shape, Tensor, TensorId, Var};

use crate::error::Result;
use crate::gates::{LayerGates, Point, Tap, show};
use crate::net::block::block;
use crate::net::{Context, Shortcuts};
use crate::params::Params;
use crate::transformer::Transformer;

/// Gradients by parameters that backward passes found inside blocks, by the parameter's id.
#[derive(Debug, Clone, Default)]
pub struct Felt(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl Felt {
    fn open(&self) -> MutexGuard<'_, HashMap<TensorId, Tensor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: TensorId, gradient: Tensor) -> candle_core::Result<()> {
        let mut felt = self.open();
        let sum = match felt.remove(&id) {
            Some(before) => before.add(&gradient)?,
            None => gradient,
        };
        felt.insert(id, sum);
        Ok(())
    }

    /// Takes the gradient by a parameter; None where no recomputed block reads it.
    pub fn take(&self, parameter: &Tensor) -> Option<Tensor> {
        self.open().remove(&parameter.id())
    }
}

/// What a transformer whose blocks are recomputed carries along.
#[derive(Debug, Clone)]
pub(crate) struct Recompute {
    /// The parameters outside the graph.
    plain: Params,
    felt: Felt,
}

/// A block that is built again in the backward pass; `y` is what it gave.
struct Rebuilt {
    model: Transformer,
    layer: usize,
    context: Context,
    gates: Option<LayerGates>,
    felt: Felt,
}

impl CustomOp2 for Rebuilt {
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
        let input = Var::from_tensor(&x.detach())?;
        let built = block(&self.model, self.layer, input.as_tensor(), &self.context, self.gates.as_ref(), Shortcuts::default(), &mut ());
        let y = built.map_err(candle_core::Error::wrap)?;
        let mut found = y.mul(&gradient.detach())?.sum_all()?.backward()?;
        for (_, parameter) in self.model.params.iter().filter(|(_, p)| p.is_variable()) {
            if let Some(gradient) = found.remove(parameter) {
                self.felt.add(parameter.id(), gradient)?;
            }
        }
        Ok((found.remove(input.as_tensor()), None))
    }
}

impl Transformer {
    /// The same network, whose blocks keep nothing but their input for the backward pass; and where the gradients by the parameters of
    /// blocks are found after it. To be asked for when all variables are among the parameters.
    pub fn recomputed(&self) -> (Self, Felt) {
        let mut plain = self.params.clone();
        for (slot, t) in self.params.iter() {
            plain.set(slot, t.detach());
        }
        let felt = Felt::default();
        (Self { recompute: Some(Arc::new(Recompute { plain, felt: felt.clone() })), ..self.clone() }, felt)
    }

    /// A block within a whole pass: recomputed where that was asked for and nobody looks inside.
    pub(crate) fn block_within(
        &self,
        layer: usize,
        x: &Tensor,
        context: &Context,
        gates: Option<&LayerGates>,
        shortcuts: Shortcuts<'_>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let recompute = self.recompute.as_ref().filter(|_| shortcuts.is_empty() && !Point::INSIDE.iter().any(|p| tap.wants(layer, *p)));
        let Some(recompute) = recompute else { return block(self, layer, x, context, gates, shortcuts, tap) };
        show(tap, layer, Point::BlockInput, x)?;
        let plain = Self { params: recompute.plain.clone(), recompute: None, ..self.clone() };
        let outside = gates.map(LayerGates::detach);
        let y = block(&plain, layer, &x.detach(), context, outside.as_ref(), Shortcuts::default(), &mut ())?;
        // An operation without an argument in the graph would not be differentiated, and the block's parameters would feel nothing.
        let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
        let again = Rebuilt {
            model: Self { recompute: None, ..self.clone() },
            layer,
            context: context.clone(),
            gates: gates.cloned(),
            felt: recompute.felt.clone(),
        };
        let y = x.apply_op2(&y.force_contiguous()?, again)?;
        show(tap, layer, Point::BlockOutput, &y)?;
        Ok(y)
    }
}
