//! Generation: the keys and values of the tokens that a causal model has read are kept, so that a new token costs one row and not the
//! whole text again. The logits are those of [`Transformer::forward`] over the whole text.

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use super::{Shortcuts, embeddings};
use crate::batch::Batch;
use crate::blueprint::{Head, PositionRule, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::gates::Gates;
use crate::transformer::Transformer;

/// Tokens that a cache has room for at first; it doubles when they are full.
const ROOM_TOKENS: usize = 256;

/// Keys and values of the tokens read so far, by layer. Made by [`Transformer::cache`], for inference alone: no gradient passes.
#[derive(Debug)]
pub struct Cache {
    /// Keys and values `[batch, kv_heads, room, head_dim]`, of which the first so many tokens count; None before the first token, and for
    /// good in a layer without attention.
    layers: Vec<Option<(Tensor, Tensor, usize)>>,
    seen: usize,
}

impl Cache {
    /// Tokens read so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Adds the keys and values `[batch, kv_heads, new, head_dim]` of a layer and returns all that it has.
    pub(crate) fn extend(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let layers = self.layers.len();
        let slot = self.layers.get_mut(layer).ok_or(ModelError::NoSuchLayer { layer, layers })?;
        let new = k.dim(2)?;
        let used = slot.as_ref().map_or(0, |(.., used)| *used);
        let room = slot.as_ref().map_or(Ok(0), |(k, ..)| k.dim(2))?;
        if used + new > room {
            let room = (used + new).max(2 * room).max(ROOM_TOKENS);
            let grown = |of: Option<&Tensor>, like: &Tensor| -> Result<Tensor> {
                let (b, n, _, d) = like.dims4()?;
                let fresh = Tensor::zeros((b, n, room, d), like.dtype(), like.device())?;
                if let Some(old) = of {
                    fresh.slice_set(&old.narrow(2, 0, used)?.contiguous()?, 2, 0)?;
                }
                Ok(fresh)
            };
            let old = slot.as_ref();
            *slot = Some((grown(old.map(|s| &s.0), k)?, grown(old.map(|s| &s.1), v)?, used));
        }
        let Some((keys, values, used)) = slot else { return Ok((k.clone(), v.clone())) };
        keys.slice_set(&k.contiguous()?, 2, *used)?;
        values.slice_set(&v.contiguous()?, 2, *used)?;
        *used += new;
        Ok((keys.narrow(2, 0, *used)?, values.narrow(2, 0, *used)?))
    }
}

impl Transformer {
    /// An empty cache.
    ///
    /// # Errors
    /// The model does not continue texts (only a causal model with a token head does), or what it computes for a token depends on the
    /// tokens behind it: int8 activations, whose outlier columns belong to a whole sequence.
    pub fn cache(&self) -> Result<Cache> {
        let refused = |found: &str| ModelError::Mismatch {
            what: "model to generate with".into(),
            found: found.into(),
            expected: "a causal language model, whose tokens do not depend on those behind them".into(),
        };
        if !self.blueprint.attention.causal || !matches!(self.blueprint.head, Head::Tokens { .. }) {
            return Err(refused(super::heads::head_name(&self.blueprint.head)));
        }
        if self.int8.is_some() {
            return Err(refused("int8 activations, rounded by outliers of the whole sequence"));
        }
        if let Some(positions) = &self.blueprint.embeddings.positions
            && matches!(positions.rule, PositionRule::RankAmongNot { .. })
        {
            return Err(refused("positions that count the tokens which are no padding"));
        }
        Ok(Cache { layers: self.dims.iter().map(|_| None).collect(), seen: 0 })
    }

    /// Reads more tokens, u32 `[batch, new]`, all real, behind those that the cache holds, and returns the logits of the last one,
    /// `[batch, vocab]`.
    ///
    /// # Errors
    /// More tokens than the model has positions for, another batch size than before, or rotary angles that change with the length
    /// ("dynamic" and "longrope" scaling, on the way beyond their original context): the cached keys would have been turned by other angles. After an error the
    /// cache is of no use.
    pub fn extend(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let batch = Batch::new(ids.clone());
        let (b, new) = batch.size()?;
        let past = cache.seen;
        let longest = self.blueprint.rotary.iter().filter_map(|r| match r.scaling {
            RotaryScaling::Dynamic { original, .. } => Some(original),
            // Once beyond, the angles stay.
            RotaryScaling::Long { original, .. } if past <= original => Some(original),
            _ => None,
        });
        if let Some(available) = longest.min().filter(|most| past > 0 && past + new > *most) {
            return Err(ModelError::CacheTurned { found: past + new, available });
        }
        let (mut x, context) = embeddings::embed(self, &batch, past)?;
        let shared = Mutex::new(std::mem::replace(cache, Cache { layers: Vec::new(), seen: 0 }));
        let gates = Gates::default();
        let blocks: Result<()> = (|| {
            for layer in 0..self.dims.len() {
                let shortcuts = Shortcuts { cache: Some(&shared), ..Shortcuts::default() };
                x = super::block::block(self, layer, &x, &context, gates.layer(layer), shortcuts, &mut ())?;
            }
            Ok(())
        })();
        *cache = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        blocks?;
        cache.seen = past + new;
        let rows: Vec<u32> = (1..=b).map(|row| (row * new) as u32).map(|end| end.saturating_sub(1)).collect();
        self.finish_rows(&x, &context, &rows, &mut ())
    }
}
