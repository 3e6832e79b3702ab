//! Block by block: each block sees the inputs that its predecessors give, as they are by then. Of a streamed model only the block that is
//! worked on is in memory.

use candle_core::Tensor;
use prunectl_model::{Batch, Context, Tap, Transformer, layer_prefix};

use crate::calibrate::{Inputs, Statistic};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::site::{Sites, slot_layer};

/// The calibration batches as they stand before one block.
pub(super) struct Stream {
    batches: Vec<Batch>,
    states: Vec<(Tensor, Context)>,
}

impl Stream {
    /// Statistics of the inputs of that block's matrices.
    pub fn inputs<S: Statistic>(&self, model: &Transformer, layer: usize, stats: Inputs<S>) -> Result<Inputs<S>> {
        let mut stats = stats.inputs_only();
        for (batch, (x, context)) in self.batches.iter().zip(&self.states) {
            stats.begin(batch)?;
            model.block(layer, x, context, None, &mut stats)?;
        }
        Ok(stats)
    }

    /// Shows one block's activations to a tap; `begin` is called before each batch.
    pub fn watch<T: Tap>(
        &self,
        model: &Transformer,
        layer: usize,
        tap: &mut T,
        begin: impl Fn(&mut T, &Batch) -> Result<()>,
    ) -> Result<()> {
        for (batch, (x, context)) in self.batches.iter().zip(&self.states) {
            begin(tap, batch)?;
            model.block(layer, x, context, None, tap)?;
        }
        Ok(())
    }
}

/// Calls `visit` with each block that holds selected sites, and those; it may change the block, the next ones see it.
pub(super) fn each(
    method: &'static str,
    model: &mut Transformer,
    sites: &Sites,
    data: &mut dyn Batches,
    progress: &dyn Progress,
    mut visit: impl FnMut(&mut Transformer, usize, &Sites, &Stream) -> Result<()>,
) -> Result<()> {
    let mut stream = Stream { batches: Vec::new(), states: Vec::new() };
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        let (x, context) = model.embed(&batch)?;
        stream.states.push((x.detach(), context));
        stream.batches.push(batch);
    }
    if stream.batches.is_empty() {
        return Err(PruneError::NoData { method, batches: 0 });
    }
    for layer in 0..model.n_layers() {
        progress.check()?;
        let own = of_layer(sites, layer);
        let prefix = layer_prefix(layer);
        model.params().tensors().bring(&prefix)?;
        if !own.is_empty() {
            visit(model, layer, &own, &stream)?;
        }
        for (x, context) in &mut stream.states {
            *x = model.block(layer, x, context, None, &mut ())?.detach();
        }
        model.params_mut().tensors_mut().put_away(&prefix)?;
        progress.advance(layer as u64 + 1, model.n_layers() as u64, method);
    }
    Ok(())
}

/// The part of a selection that lies in one layer.
fn of_layer(sites: &Sites, layer: usize) -> Sites {
    Sites {
        units: sites.units.iter().filter(|(k, _)| k.layer == Some(layer)).map(|(k, u)| (*k, u.clone())).collect(),
        weights: sites.weights.iter().filter(|s| slot_layer(s) == Some(layer)).cloned().collect(),
    }
}
