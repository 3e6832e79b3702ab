//! Block by block: each block sees the inputs that its predecessors give, as they are by then. Of a streamed model only the block that is
//! worked on is in memory.

use candle_core::Tensor;
use prunectl_kernels::threads::side_by_side;
use prunectl_model::{Batch, Context, ModelError, Point, Tap, Transformer, layer_prefix};

use crate::calibrate::{Inputs, Statistic};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::site::{Sites, slot_layer};

/// The calibration batches as they stand before one block.
pub(super) struct Stream {
    batches: Vec<Batch>,
    states: Vec<(Tensor, Context)>,
}

/// Tokens of the batches that pass a block side by side, in layer-wise methods on the CPU; a larger batch passes alone.
pub const TOKENS_SIDE_BY_SIDE: usize = 2048;

impl Stream {
    /// How many batches pass a block at once: the first one's length stands for all.
    fn at_once(&self, model: &Transformer) -> usize {
        let tokens = self.batches.first().map_or(0, |b| b.input_ids.elem_count());
        if model.device().is_cpu() { (TOKENS_SIDE_BY_SIDE / tokens.max(1)).max(1) } else { 1 }
    }

    /// Statistics of the inputs of that block's matrices.
    pub fn inputs<S: Statistic>(&self, model: &Transformer, layer: usize, stats: Inputs<S>) -> Result<Inputs<S>> {
        let mut stats = stats.inputs_only();
        self.watch(model, layer, &mut stats, |stats, batch| Ok(stats.begin(batch)?))?;
        Ok(stats)
    }

    /// Shows one block's activations to a tap; `begin` is called before each batch.
    pub fn watch<T: Tap + Sync>(
        &self,
        model: &Transformer,
        layer: usize,
        tap: &mut T,
        begin: impl Fn(&mut T, &Batch) -> Result<()>,
    ) -> Result<()> {
        let side = self.at_once(model);
        for (batches, states) in self.batches.chunks(side).zip(self.states.chunks(side)) {
            if let ([batch], [(x, context)]) = (batches, states) {
                begin(tap, batch)?;
                model.block(layer, x, context, None, tap)?;
                continue;
            }
            let seen = side_by_side(states, |(x, context)| {
                let mut seen = Seen { by: tap, what: Vec::new() };
                model.block(layer, x, context, None, &mut seen)?;
                Ok::<_, PruneError>(seen.what)
            })?;
            for (batch, seen) in batches.iter().zip(seen) {
                begin(tap, batch)?;
                for (point, x) in seen {
                    tap.see(layer, point, &x)?;
                }
            }
        }
        Ok(())
    }

    /// The batches as they stand behind a block.
    fn pass(&mut self, model: &Transformer, layer: usize) -> Result<()> {
        let side = self.at_once(model);
        for states in self.states.chunks_mut(side) {
            let passed =
                side_by_side(&*states, |(x, context)| Ok::<_, PruneError>(model.block(layer, x, context, None, &mut ())?.detach()))?;
            states.iter_mut().zip(passed).for_each(|((x, _), y)| *x = y);
        }
        Ok(())
    }
}

/// What a block showed, to be shown to the tap that wants it when its batch's turn comes.
struct Seen<'a, T> {
    by: &'a T,
    what: Vec<(Point, Tensor)>,
}

impl<T: Tap> Tap for Seen<'_, T> {
    fn wants(&self, layer: usize, point: Point) -> bool {
        self.by.wants(layer, point)
    }

    fn ends_at(&self, layer: usize, point: Point) -> bool {
        self.by.ends_at(layer, point)
    }

    fn see(&mut self, _: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        self.what.push((point, x.detach()));
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
        stream.pass(model, layer)?;
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
