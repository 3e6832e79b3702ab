//! From ids to the residual stream.

use candle_core::{DType, Tensor};
use prunectl_kernels::embedding;

use super::{Context, linear, norm, position};
use crate::batch::Batch;
use crate::blueprint::{Head, Norm, NormKind, Pick, Projection};
use crate::error::{ModelError, Result};
use crate::transformer::Transformer;

/// The input of block 0 `[batch, seq, hidden]`, and what all blocks share, of tokens behind `past` others.
pub(crate) fn embed(model: &Transformer, batch: &Batch, past: usize) -> Result<(Tensor, Context)> {
    let passing = model.passing();
    let model = passing.as_ref().unwrap_or(model);
    let (blueprint, params, device) = (&model.blueprint, &model.params, &model.device);
    let spec = &blueprint.embeddings;
    let (b, s) = batch.size()?;
    let ids = batch.checked_ids(blueprint.vocab)?;
    let keep = batch.host_keep()?;

    let tokens = batch.input_ids.to_dtype(DType::U32)?.to_device(device)?;
    let mut x = embedding(params.require("embeddings.token.weight")?, &tokens)?;
    if spec.scale != 1.0 {
        x = (x * spec.scale)?;
    }
    if spec.project == Some(Projection::Tokens) {
        x = linear(params, "embeddings.project", &x)?;
    }
    if spec.token_types > 0 {
        let table = params.require("embeddings.token_type.weight")?;
        x = match &batch.token_type_ids {
            Some(types) => (x + embedding(table, &checked_types(types, spec.token_types, (b, s))?.to_device(device)?)?)?,
            None => x.broadcast_add(&table.get(0)?)?,
        };
    }
    if let Some(positions) = &spec.positions {
        let rows: Vec<u32> = position::rows(&positions.rule, &ids, keep.as_deref()).into_iter().flatten().collect();
        let rows: Vec<u32> = rows.into_iter().map(|row| row + past as u32).collect();
        if let Some(beyond) = rows.iter().find(|row| **row as usize >= positions.rows) {
            let offset = (*beyond as usize + 1).saturating_sub(past + s);
            return Err(ModelError::TooLong { found: past + s, available: positions.rows.saturating_sub(offset) });
        }
        let rows = Tensor::from_vec(rows, (b, s), device)?;
        x = (x + embedding(params.require("embeddings.position.weight")?, &rows)?)?;
    }
    if let Some(eps) = spec.norm_eps {
        x = norm::of_stream(model, "embeddings.norm", Norm { kind: NormKind::Layer, eps }, &x)?;
    }
    if spec.project == Some(Projection::Sum) {
        x = linear(params, "embeddings.project", &x)?;
    }

    let pad = match blueprint.head {
        Head::Sequence { pick: Pick::Last { pad }, .. } => pad,
        _ => None,
    };
    let last = batch.last(pad)?;
    let ends = pad.is_none() || last == batch.last(None)?;
    let keep = match keep {
        None => None,
        Some(rows) => Some(Tensor::from_vec(rows.concat(), (b, s), device)?),
    };
    let rotary = blueprint.rotary.iter().map(|r| position::rotary_table(r, past, s, model.dtype, device)).collect::<Result<Vec<_>>>()?;
    Ok((x, Context { batch: b, seq: s, keep, last, ends, rotary, hidden_gate: None }))
}

fn checked_types(types: &Tensor, rows: usize, (b, s): (usize, usize)) -> Result<Tensor> {
    let types = types.to_dtype(DType::U32)?;
    let values = types.flatten_all()?.to_vec1::<u32>()?;
    match values.iter().find(|t| **t as usize >= rows) {
        None if types.dims() == [b, s] => Ok(types),
        None => Err(ModelError::Mismatch {
            what: "shape of the token types".into(),
            found: format!("{:?}", types.dims()),
            expected: format!("[{b}, {s}]"),
        }),
        Some(found) => {
            Err(ModelError::Mismatch { what: "token type".into(), found: found.to_string(), expected: format!("one of 0..{rows}") })
        }
    }
}
