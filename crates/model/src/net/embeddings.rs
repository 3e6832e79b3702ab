//! From ids to the residual stream.
use candle_core::Tensor;

use super::Context;
use crate::batch::Batch;
use crate::error::Result;
use crate::transformer::Transformer;

pub(crate) fn embed(model: &Transformer, batch: &Batch) -> Result<(Tensor, Context)> {
    let (b, s) = batch.size()?;
    let x = model.params.require("embeddings.token.weight")?.index_select(&batch.input_ids.flatten_all()?, 0)?;
    Ok((x.reshape((b, s, ()))?, Context { batch: b, seq: s, keep: None, last: vec![s; b], rotary: Vec::new() }))
}
